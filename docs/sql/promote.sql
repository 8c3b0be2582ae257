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

COMMIT;
