-- Makes PostgreSQL the only store after the SQLite file was lost in phase read-postgres, as the
-- cutover of the migration does. It cannot be reversed. Stop the server first, run the script with
-- the search_path of the service, then start the server with --postgres alone. See
-- docs/how-to/backup.md.

BEGIN;

DO $promote$
DECLARE
    record migration%ROWTYPE;
BEGIN
    SELECT * INTO record FROM migration FOR UPDATE;
    IF NOT FOUND OR record.phase <> 4 THEN
        RAISE EXCEPTION 'this database is not the target of a migration in phase read-postgres; nothing was changed';
    END IF;
    IF record.session <> '' AND record.lease_until > clock_timestamp() THEN
        RAISE EXCEPTION 'a server holds this migration; stop it, wait ten seconds, and try again';
    END IF;
END
$promote$;

-- The next revision exceeds every revision that the file may have assigned: PostgreSQL lacks at
-- most the changes that waited in the journal.
SELECT setval('message_revisions', greatest(
    last_value,
    (SELECT applied FROM migration),
    (SELECT coalesce(max(revision), 0) FROM messages),
    (SELECT coalesce(max(revision), 0) FROM tombstones)
) + 1000000) FROM message_revisions;
SELECT setval(pg_get_serial_sequence('quarantine', 'number'),
    (SELECT coalesce(max(number), 0) + 1 FROM quarantine), false);
UPDATE migration SET phase = 5, epoch = epoch + 1, holder = '', session = '',
    lease_until = clock_timestamp();

-- An upgrade of the schema during the migration leaves messages without a sequence, and without the
-- indexes that contain it, until they are copied again. They get what the upgrade of a store without
-- a migration gives them.
DO $order$
BEGIN
    IF EXISTS (
        SELECT FROM information_schema.columns
        WHERE table_schema = current_schema() AND table_name = 'messages' AND column_name = 'sequence'
    ) THEN
        UPDATE messages SET sequence = revision WHERE sequence = 0;
        PERFORM setval('message_revisions', greatest(
            last_value, (SELECT coalesce(max(sequence), 0) FROM messages)
        )) FROM message_revisions;
        CREATE INDEX IF NOT EXISTS idx_messages_session ON messages (session_id, timestamp, sequence)
            WHERE session_id IS NOT NULL;
        CREATE INDEX IF NOT EXISTS idx_messages_timestamp ON messages (timestamp, sequence);
        CREATE INDEX IF NOT EXISTS idx_messages_sequence ON messages (sequence);
    END IF;
END
$order$;

-- For the same reason sessions may be missing. They get the values that follow from their messages;
-- titles and metadata that PostgreSQL has not received yet are lost with the file.
DO $sessions$
BEGIN
    IF EXISTS (
        SELECT FROM information_schema.tables
        WHERE table_schema = current_schema() AND table_name = 'sessions'
    ) THEN
        INSERT INTO sessions (session_id, title, metadata, explicit, message_count, providers, first_time,
            first_sequence, first_message, last_time, last_sequence, created_at, updated_at, revision,
            deleting)
        SELECT session_id, '', '{}'::jsonb, false, sum(messages)::bigint,
            jsonb_object_agg(provider, messages), min(first_time), 0, '', max(last_time),
            max(last_sequence), min(created_at), max(updated_at), max(revision), 0
        FROM (
            SELECT session_id, provider, count(*) AS messages, min(timestamp) AS first_time,
                max(timestamp) AS last_time, max(sequence) AS last_sequence,
                min(coalesce(created_at, timestamp)) AS created_at,
                max(coalesce(created_at, timestamp)) AS updated_at, max(revision) AS revision
            FROM messages AS m
            WHERE session_id IS NOT NULL
                AND NOT EXISTS (SELECT FROM sessions AS s WHERE s.session_id = m.session_id)
            GROUP BY session_id, provider
        ) AS counted GROUP BY session_id;
        UPDATE sessions AS s SET first_sequence = f.sequence, first_message = left(f.content, 200)
        FROM (
            SELECT DISTINCT ON (session_id) session_id, sequence, content FROM messages
            WHERE session_id IS NOT NULL ORDER BY session_id, timestamp, sequence
        ) AS f WHERE f.session_id = s.session_id AND s.first_sequence = 0;
        PERFORM setval('message_revisions', greatest(
            last_value, (SELECT coalesce(max(revision), 0) FROM sessions)
        )) FROM message_revisions;
    END IF;
END
$sessions$;

COMMIT;
