-- Statements of the live migration by name. Loaded by queries.py.

-- name: record
SELECT source, phase, epoch, holder, session,
    extract(epoch FROM lease_until - clock_timestamp())::float8 AS lease_seconds, applied,
    backfill_state, backfill_carried, backfill_cursor, backfill_upto, backfill_copied, backfill_total,
    backfill_attempt
FROM migration

-- name: record_before_order
-- As `record`, of a schema before step 3.
SELECT source, phase, epoch, holder, session,
    extract(epoch FROM lease_until - clock_timestamp())::float8 AS lease_seconds, applied,
    backfill_state, backfill_carried, backfill_cursor, backfill_upto, backfill_copied, backfill_total,
    0::bigint AS backfill_attempt
FROM migration

-- name: phase
-- Only columns that every schema version with this table has: read before an upgrade.
SELECT phase, holder FROM migration

-- name: unfinished
-- Whether this is the target of an unfinished migration.
SELECT EXISTS (SELECT FROM migration WHERE phase < 5)

-- name: lock_record
SELECT source, phase, epoch, holder, session,
    extract(epoch FROM lease_until - clock_timestamp())::float8 AS lease_seconds, applied,
    backfill_state, backfill_carried, backfill_cursor, backfill_upto, backfill_copied, backfill_total,
    backfill_attempt
FROM migration FOR UPDATE

-- name: hold
-- Checks and extends the lease, and lets this transaction pass the guard. The lock on the row is
-- held until the end of the transaction, so these transactions run one at a time, and one that
-- hangs cannot commit after another server has taken the lease.
WITH held AS (
    UPDATE migration
    SET lease_until = clock_timestamp() + $3::float8 * interval '1 second',
        applied = greatest(applied, $4::bigint)
    WHERE holder = $1 AND session = $2 AND session <> '' AND ($5::bigint IS NULL OR applied = $5)
    RETURNING *
)
SELECT source, phase, epoch, holder, session,
    extract(epoch FROM lease_until - clock_timestamp())::float8 AS lease_seconds, applied,
    backfill_state, backfill_carried, backfill_cursor, backfill_upto, backfill_copied, backfill_total,
    backfill_attempt, set_config('sagastore.session', session, true),
    (SELECT max(compatible_from) FROM sagastore_schema) AS compatible_from
FROM held

-- name: new_record
INSERT INTO migration (source, phase, epoch, holder, session, lease_until)
VALUES ($1, $2, $3, $4, $5, clock_timestamp())

-- name: take_record
UPDATE migration SET holder = $1, session = $2

-- name: release
-- The name of the last holder stays, so that a returning server detects that another one was active
-- meanwhile.
UPDATE migration SET session = '', lease_until = clock_timestamp()
WHERE holder = $1 AND session = $2

-- name: set_phase
UPDATE migration SET phase = $1, epoch = $2

-- name: set_mark
UPDATE migration SET backfill_state = $1, backfill_carried = $2, backfill_cursor = $3,
    backfill_upto = $4, backfill_copied = $5, backfill_total = $6, backfill_attempt = $7

-- name: contents
-- Names of the kinds of contents that exist. Tombstones do not count.
SELECT name FROM (VALUES
    (1, 'messages', EXISTS (SELECT FROM messages)),
    (2, 'sessions', EXISTS (SELECT FROM sessions WHERE explicit OR message_count > 0)),
    (3, 'files', EXISTS (SELECT FROM files)),
    (4, 'quarantined rows', EXISTS (SELECT FROM quarantine))
) AS kind (number, name, there) WHERE there ORDER BY number

-- name: contents_before_sessions
-- The same of a schema that has no sessions.
SELECT name FROM (VALUES
    (1, 'messages', EXISTS (SELECT FROM messages)),
    (2, 'files', EXISTS (SELECT FROM files)),
    (3, 'quarantined rows', EXISTS (SELECT FROM quarantine))
) AS kind (number, name, there) WHERE there ORDER BY number

-- name: clear_leftovers
-- Rows of deleted messages: their revisions are unrelated to those of the new source.
DELETE FROM tombstones;
DELETE FROM file_tombstones;
DELETE FROM sessions;
DELETE FROM legacy_extra

-- name: make_guard
-- Until the migration is finished, a statement without the lease cannot write messages, whichever
-- server sends it. The guard reads one row per statement, not per row. Names are qualified because
-- the function runs with the search_path of the writer.
DO $make$
DECLARE
    guarded TEXT;
BEGIN
    EXECUTE format($function$
        CREATE OR REPLACE FUNCTION %1$I.sagastore_guard() RETURNS trigger LANGUAGE plpgsql AS $body$
        BEGIN
            IF EXISTS (
                SELECT FROM %1$I.migration WHERE phase < 5
                    AND (session = '' OR session IS DISTINCT FROM current_setting('sagastore.session', true))
            ) THEN
                RAISE EXCEPTION 'the messages belong to a migration that another server holds'
                    USING ERRCODE = 'SG001';
            END IF;
            RETURN NULL;
        END
        $body$
    $function$, current_schema());
    FOREACH guarded IN ARRAY ARRAY['messages', 'sessions', 'tombstones', 'quarantine', 'files',
        'file_tombstones', 'legacy_extra'] LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS sagastore_guard ON %I', guarded);
        EXECUTE format(
            'CREATE TRIGGER sagastore_guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %I '
            'FOR EACH STATEMENT EXECUTE FUNCTION %I.sagastore_guard()', guarded, current_schema());
    END LOOP;
END
$make$

-- name: drop_guard
-- If a long read or a missing privilege prevents the removal, the guard stays: in phase 5 it permits
-- every write, and the next server start removes it.
DO $drop$
BEGIN
    -- Other calls wait behind these locks, so the limits are those of ddl_locks.py, or shorter.
    PERFORM set_config('lock_timeout', '500ms', true);
    LOCK TABLE messages IN ACCESS EXCLUSIVE MODE;
    PERFORM set_config('lock_timeout', '50ms', true);
    LOCK TABLE sessions, tombstones, quarantine, files, file_tombstones, legacy_extra IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('DROP FUNCTION %I.sagastore_guard() CASCADE', current_schema());
EXCEPTION WHEN lock_not_available OR insufficient_privilege OR undefined_function THEN
    NULL;
END
$drop$

-- name: guards
-- Number of guarded tables.
SELECT count(*) FROM pg_trigger AS t
JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE t.tgname = 'sagastore_guard' AND n.nspname = current_schema()

-- name: forget
-- Removes the rows and the tombstones of some ids.
WITH forgotten AS (DELETE FROM tombstones WHERE id = ANY($1::text[]))
DELETE FROM messages WHERE id = ANY($1::text[])

-- name: bury
WITH gone AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::timestamptz[]) AS gone (id, revision, deleted_at)
), deleted AS (
    DELETE FROM messages AS old USING gone WHERE old.id = gone.id AND old.revision < gone.revision
)
INSERT INTO tombstones (id, revision, deleted_at) SELECT id, revision, deleted_at FROM gone
ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, deleted_at = excluded.deleted_at
WHERE tombstones.revision < excluded.revision

-- name: upsert
-- A row with the sequence 0 was stored by a version without sequences.
INSERT INTO messages
    (id, provider, role, content, tags, timestamp, metadata, session_id, created_at, revision, sequence,
    terms, search, analysed_3)
SELECT id, provider, role, content, tags::jsonb, timestamp, metadata::jsonb, session_id, created_at, revision,
    sequence, terms, search, revision
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[],
    $8::text[], $9::timestamptz[], $10::bigint[], $11::bigint[], $12::text[], $13::tsvector[])
    AS new (id, provider, role, content, tags, timestamp, metadata, session_id, created_at, revision,
    sequence, terms, search)
WHERE NOT EXISTS (
    SELECT FROM tombstones WHERE tombstones.id = new.id AND tombstones.revision > new.revision
)
ON CONFLICT (id) DO UPDATE SET provider = excluded.provider, role = excluded.role,
    content = excluded.content, tags = excluded.tags, timestamp = excluded.timestamp,
    metadata = excluded.metadata, session_id = excluded.session_id, created_at = excluded.created_at,
    revision = excluded.revision, sequence = excluded.sequence, terms = excluded.terms,
    search = excluded.search, analysed_3 = excluded.analysed_3
WHERE messages.revision < excluded.revision
    OR (messages.sequence = 0 AND messages.revision = excluded.revision)

-- name: known
-- Those of some ids that have a row or a tombstone.
SELECT id FROM messages WHERE id = ANY($1::text[])
UNION SELECT id FROM tombstones WHERE id = ANY($1::text[])

-- name: delete_auxiliary_rows
DELETE FROM quarantine;
DELETE FROM legacy_extra

-- name: upsert_quarantine
INSERT INTO quarantine (number, source_key, reason, field, row)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[])
ON CONFLICT (source_key) DO UPDATE SET number = excluded.number, reason = excluded.reason,
    field = excluded.field, row = excluded.row

-- name: upsert_extras
INSERT INTO legacy_extra (message_id, name, value) SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
ON CONFLICT (message_id, name) DO UPDATE SET value = excluded.value

-- Columns and order of the next two as in storage/auxiliary_rows.py.

-- name: all_quarantine
SELECT number, source_key, reason, field, row FROM quarantine ORDER BY number

-- name: all_extras
SELECT message_id, name, value FROM legacy_extra ORDER BY message_id COLLATE "C", name COLLATE "C"

-- name: indexes
-- The existing late indexes, and whether they are complete.
SELECT c.relname, i.indisvalid AND i.indisready FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_class AS t ON t.oid = i.indrelid
JOIN pg_namespace AS n ON n.oid = t.relnamespace
WHERE t.relname = 'messages' AND n.nspname = current_schema() AND c.relname = ANY($1::text[])

-- name: build_progress
-- Progress of the build of an index, by any connection.
SELECT p.phase, p.blocks_done, p.blocks_total, p.tuples_done, p.tuples_total
FROM pg_stat_progress_create_index AS p
JOIN pg_class AS c ON c.oid = p.index_relid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE p.datname = current_database() AND c.relname = $1 AND n.nspname = current_schema()

-- name: finish
UPDATE migration SET phase = 5, epoch = $1, holder = '', session = '', lease_until = clock_timestamp()

-- name: raise_numbers
-- The next revision is greater than every revision of the source, as are new quarantine numbers.
SELECT setval('message_revisions', greatest(last_value, $1::bigint)),
    setval(pg_get_serial_sequence('quarantine', 'number'),
        (SELECT coalesce(max(number), 0) + 1 FROM quarantine), false)
FROM message_revisions

-- name: count_at_position
SELECT applied,
    (SELECT count(*) FROM messages),
    (SELECT count(*) FROM sessions WHERE explicit OR message_count > 0),
    (SELECT count(*) FROM files)
FROM migration

-- name: count_pending
SELECT
    (SELECT count(*) FROM messages WHERE id = ANY($1::text[])),
    (SELECT count(*) FROM sessions
        WHERE session_id = ANY($2::text[]) AND (explicit OR message_count > 0)),
    (SELECT count(*) FROM files WHERE id = ANY($3::text[]))
