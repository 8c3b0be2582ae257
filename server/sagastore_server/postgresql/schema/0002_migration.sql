-- What a store keeps that another one is being moved into. Servers that do not know
-- this step must not use it: they would write behind the migration's back.

-- The migration that the messages came, or are coming, by: one row at most. Until the
-- phase is 5 the truth is in the SQLite file that `holder` names. `lease_until` is by this
-- database's clock. `applied` is the sequence up to which the journal is here, committed
-- with the rows themselves; so is how far the copying of older rows is (`backfill_…`).
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

-- Values, as JSON, of columns that a legacy `messages` table had beyond the known ones.
CREATE TABLE legacy_extra (
    message_id TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (message_id, name)
);

-- Further columns of a legacy `files` table, as a JSON object.
ALTER TABLE files ADD COLUMN extra TEXT NOT NULL DEFAULT '{}';
