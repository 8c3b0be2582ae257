-- Static statements by name. Loaded by queries.py.
-- The columns of a message have the order of storage.model.Message.

-- name: batch_get
SELECT id, provider, role, content, tags::text, timestamp, metadata::text, session_id, created_at, revision,
    sequence
FROM messages WHERE id = ANY($1::text[])

-- name: begin
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'

-- name: require_standby
-- Sent in one message with COMMIT, so that it takes no round trip and nothing happens in between. A
-- role without pg_read_all_stats sees the rows of other roles with NULL in all other columns. The
-- SQLSTATEs are those of commit.py.
DO $$
DECLARE
    streaming boolean;
BEGIN
    SELECT bool_or(state = 'streaming' AND sync_state IN ('sync', 'quorum'))
        INTO streaming FROM pg_catalog.pg_stat_replication;
    IF streaming THEN
        RETURN;
    ELSIF EXISTS (SELECT FROM pg_catalog.pg_stat_replication WHERE sync_state IS NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'SG003', MESSAGE = 'no permission';
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'SG002', MESSAGE = 'no synchronous standby';
END $$

-- name: lock
-- Locks the sessions $3 and those of the messages $1, then the messages, each in the order of their
-- ids, then takes $2 blocks of revisions: a branch of the UNION runs after the ones before it. A row of
-- a session has no id; the last rows have neither id nor session, the last revision of a block, and in
-- place of the sequence the oldest schema version whose servers may write (compatibility.py). The
-- snapshot of the statement is taken after its locks on the tables.
WITH conversations AS MATERIALIZED (
    SELECT session_id, title, metadata::text AS metadata, explicit, message_count,
        providers::text AS providers, first_time, first_sequence, first_message, last_time,
        last_sequence, created_at, updated_at, revision, deleting
    FROM sessions WHERE session_id IN (
        SELECT unnest($3::text[]) UNION SELECT session_id FROM messages WHERE id = ANY($1::text[])
    ) ORDER BY session_id FOR UPDATE
), locked AS MATERIALIZED (
    SELECT id, provider, role, content, tags::text AS tags, timestamp, metadata::text AS metadata,
        session_id, created_at, revision, sequence
    FROM messages WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE
)
SELECT NULL::text AS id, NULL AS provider, NULL AS role, NULL AS content, NULL AS tags,
    NULL::timestamptz AS timestamp, metadata, session_id, created_at, revision, NULL::bigint AS sequence,
    title, explicit, message_count, providers, first_time, first_sequence, first_message, last_time,
    last_sequence, updated_at, deleting
FROM conversations
UNION ALL
SELECT *, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM locked
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, nextval('message_revisions'),
    (SELECT max(compatible_from) FROM sagastore_schema), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    NULL, NULL
FROM generate_series(1, $2::int)

-- name: take_block
-- Takes a block of revisions, and returns the last of it.
SELECT nextval('message_revisions')

-- name: insert
INSERT INTO messages
    (id, provider, role, content, tags, timestamp, metadata, session_id, created_at, revision, sequence,
    terms, search, analysed_3)
SELECT id, provider, role, content, tags::jsonb, timestamp, metadata::jsonb, session_id, created_at, revision,
    sequence, terms, search, revision
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[],
    $8::text[], $9::timestamptz[], $10::bigint[], $11::bigint[], $12::text[], $13::tsvector[])
    AS new (id, provider, role, content, tags, timestamp, metadata, session_id, created_at, revision,
    sequence, terms, search)
ON CONFLICT (id) DO NOTHING
RETURNING id

-- name: update
UPDATE messages AS old
SET provider = new.provider, role = new.role, content = new.content, tags = new.tags::jsonb,
    timestamp = new.timestamp, metadata = new.metadata::jsonb, session_id = new.session_id,
    created_at = new.created_at, revision = new.revision, sequence = new.sequence, terms = new.terms,
    search = new.search, analysed_3 = new.revision
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[],
    $8::text[], $9::timestamptz[], $10::bigint[], $11::bigint[], $12::text[], $13::tsvector[])
    AS new (id, provider, role, content, tags, timestamp, metadata, session_id, created_at, revision,
    sequence, terms, search)
WHERE old.id = new.id
RETURNING old.id

-- name: delete
DELETE FROM messages WHERE id = ANY($1::text[]) RETURNING id

-- name: bury
INSERT INTO tombstones (id, revision, deleted_at)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::timestamptz[])
ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, deleted_at = excluded.deleted_at

-- name: outlived
-- Whether an inserted id was deleted under a greater revision after its own was taken. A separate
-- statement, because it must see what was committed meanwhile.
SELECT EXISTS (SELECT FROM tombstones WHERE id = ANY($1::text[]) AND revision >= $2::bigint)

-- name: scan_ids
SELECT id, provider, role, content, tags::text, timestamp, metadata::text, session_id, created_at, revision,
    sequence
FROM (
    SELECT *, sum(weight) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - weight AS before,
        row_number() OVER (ORDER BY id) AS place
    FROM (
        SELECT *, (octet_length(content) + pg_column_size(metadata) / 4 + 1024)::bigint AS weight
        FROM messages WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3
    ) AS found
) AS weighed
-- The first row may be larger than a page, and the second says that there is another page.
WHERE place <= 2 OR before <= $4::bigint ORDER BY id

-- name: scan_sequences
SELECT id, provider, role, content, tags::text, timestamp, metadata::text, session_id, created_at, revision,
    sequence
FROM (
    SELECT *, sum(weight) OVER (ORDER BY sequence ROWS UNBOUNDED PRECEDING) - weight AS before,
        row_number() OVER (ORDER BY sequence) AS place
    FROM (
        SELECT *, (octet_length(content) + pg_column_size(metadata) / 4 + 1024)::bigint AS weight
        FROM messages WHERE sequence > $1 AND sequence <= $2 ORDER BY sequence LIMIT $3
    ) AS found
) AS weighed
WHERE place <= 2 OR before <= $4::bigint ORDER BY sequence

-- name: last_sequence
SELECT coalesce(max(sequence), 0) FROM messages

-- name: last_id
SELECT id FROM messages ORDER BY id DESC LIMIT 1

-- name: count_messages
SELECT count(*) FROM messages

-- name: count_records
SELECT (SELECT count(*) FROM messages),
    (SELECT count(*) FROM sessions WHERE explicit OR message_count > 0),
    (SELECT count(*) FROM files)

-- name: ping
SELECT max(version), max(compatible_from) FROM sagastore_schema

-- name: quarantine
SELECT number, source_key, reason, field, row FROM quarantine WHERE number > $1 ORDER BY number LIMIT $2

-- name: quarantine_count
SELECT count(*) FROM quarantine

-- name: get_state
SELECT value FROM store_state WHERE name = $1

-- name: lock_state
SELECT value FROM store_state WHERE name = $1 FOR UPDATE

-- name: add_state
INSERT INTO store_state (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING

-- name: skip_blocks
-- Drawn numbers are in the WAL even if this transaction is rolled back, and drawing them needs no more
-- privileges than any write.
SELECT max(nextval('message_revisions')) FROM generate_series(1, $1)

-- name: set_state
INSERT INTO store_state (name, value) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET value = excluded.value

-- name: foreign_tables
-- Tables with names of SagaStore in the current schema.
SELECT relname FROM pg_class
WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
    AND relname = ANY($1::text[]) ORDER BY relname

-- name: has_versions
-- Not to_regclass: its cache may be older than the lock that was waited for.
SELECT EXISTS (
    SELECT FROM pg_class
    WHERE relname = 'sagastore_schema'
        AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
)

-- name: note_version
INSERT INTO sagastore_schema (version, compatible_from) VALUES ($1, $2)

-- name: lock_holder
-- The transaction that has had a lock on one of the tables $1 for longest, and for more than $2 seconds.
-- A role without pg_read_all_stats sees no times of other roles; such a transaction counts as old. A
-- prepared transaction has no process.
SELECT c.relname, l.pid, a.usename, a.application_name, a.backend_type,
    extract(epoch FROM clock_timestamp() - a.xact_start)::float8, a.xact_start
FROM pg_locks AS l
JOIN pg_class AS c ON c.oid = l.relation
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND n.nspname = current_schema() AND c.relname = ANY($1::text[])
    AND l.pid IS DISTINCT FROM pg_backend_pid()
    AND (a.xact_start IS NULL OR a.xact_start < clock_timestamp() - $2::float8 * interval '1 second')
ORDER BY a.xact_start NULLS LAST LIMIT 1

-- name: lock_schema
-- One server at a time changes the schema. The end of the transaction releases the lock.
SELECT pg_advisory_xact_lock(hashtextextended('sagastore schema ' || current_schema(), 0))

-- name: stale_texts
-- The next rows by id: their revisions, and the contents of those whose terms are of a former
-- analysis version. Up to a number of rows and about a size of contents, but at least one row.
SELECT id, revision, CASE WHEN stale THEN content END
FROM (
    SELECT *, sum(weight) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - weight AS before
    FROM (
        SELECT id, revision, content, analysed_3 <> revision AS stale,
            CASE WHEN analysed_3 <> revision THEN octet_length(content) ELSE 0 END::bigint AS weight
        FROM messages WHERE id > $1 ORDER BY id LIMIT $2
    ) AS found
) AS weighed
WHERE before <= $3::bigint ORDER BY id

-- name: lock_rows
-- In the order in which every transaction locks them. Returns their number, and `compatible_from` as
-- `lock` does.
WITH locked AS MATERIALIZED (
    SELECT FROM messages WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE
)
SELECT (SELECT count(*) FROM locked), (SELECT max(compatible_from) FROM sagastore_schema)

-- name: set_terms
UPDATE messages AS old SET terms = new.terms, search = new.search, analysed_3 = new.revision
FROM unnest($1::text[], $2::bigint[], $3::text[], $4::tsvector[]) AS new (id, revision, terms, search)
WHERE old.id = new.id AND old.revision = new.revision AND old.analysed_3 <> old.revision

-- name: raise_analysis
-- An older version, or an unknown one, is replaced.
INSERT INTO store_state (name, value) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
WHERE coalesce(substring(store_state.value FROM '^[0-9]+'), '0')::bigint < excluded.value::bigint

-- name: upgraded_recently
-- Whether servers of the version before `analysed_3` may still run. A new store, which got all
-- versions in one transaction, never had any.
SELECT max(applied_at) FILTER (WHERE version = 6) > now() - interval '1 day'
    AND min(applied_at) < max(applied_at) FILTER (WHERE version = 6)
FROM sagastore_schema
