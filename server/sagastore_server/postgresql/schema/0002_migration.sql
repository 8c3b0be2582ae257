-- State of a migration target. Servers without this step must not use the store: they would write
-- during the migration.

-- The migration to this store, at most one row. Until phase 5 the SQLite file that `holder` names is
-- authoritative. `lease_until` uses the clock of this database. `applied` is the journal sequence up
-- to which changes are applied; it is committed with the rows, as is the progress of the backfill
-- (`backfill_…`).
CREATE TABLE migration (
    one BOOLEAN PRIMARY KEY DEFAULT true CHECK (one),
    source TEXT NOT NULL,
    phase SMALLINT NOT NULL CHECK (phase BETWEEN 1 AND 5),
    epoch BIGINT NOT NULL,
    holder TEXT NOT NULL,
    session TEXT NOT NULL,
    lease_until TIMESTAMPTZ NOT NULL,
    applied BIGINT NOT NULL DEFAULT 0,
    backfill_state TEXT NOT NULL DEFAULT 'pending',
    backfill_carried BOOLEAN NOT NULL DEFAULT false,
    backfill_cursor TEXT COLLATE "C" NOT NULL DEFAULT '',
    backfill_upto TEXT COLLATE "C" NOT NULL DEFAULT '',
    backfill_copied BIGINT NOT NULL DEFAULT 0,
    backfill_total BIGINT NOT NULL DEFAULT 0
);

-- JSON values of the unknown columns of a legacy `messages` table.
CREATE TABLE legacy_extra (
    message_id TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (message_id, name)
);

-- Unknown columns of a legacy `files` table, as a JSON object.
ALTER TABLE files ADD COLUMN extra TEXT NOT NULL DEFAULT '{}';
