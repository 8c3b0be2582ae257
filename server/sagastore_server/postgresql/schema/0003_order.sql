-- Order of conversations. `sequence` is the order in which messages were first stored: the revision
-- under which the id appeared. Messages of earlier versions get their current revision. In the
-- target of an unfinished migration they get 0, and the backfill copies all messages again, with the
-- sequence that they have in SQLite.
ALTER TABLE messages ADD COLUMN sequence BIGINT NOT NULL DEFAULT 0;
ALTER TABLE messages ALTER COLUMN sequence DROP DEFAULT;

-- Number of times that copying quarantine, files and extra values has begun.
ALTER TABLE migration ADD COLUMN backfill_attempt BIGINT NOT NULL DEFAULT 0;

-- A transaction takes revisions in blocks: nextval returns the last one of a block. So the messages
-- of one call have adjacent sequences. `setval` counts the start value as taken; otherwise the first
-- block would begin below 1.
ALTER SEQUENCE message_revisions INCREMENT BY 1024;
SELECT setval('message_revisions', last_value) FROM message_revisions;

DROP INDEX IF EXISTS idx_messages_session;
DROP INDEX IF EXISTS idx_messages_timestamp;

DO $upgrade$
BEGIN
    IF EXISTS (SELECT FROM migration WHERE phase < 5) THEN
        UPDATE migration SET backfill_state = 'pending', backfill_carried = false, backfill_cursor = '',
            backfill_upto = '', backfill_copied = 0, backfill_total = 0;
    ELSE
        UPDATE messages SET sequence = revision;
    END IF;
END
$upgrade$;

CREATE INDEX idx_messages_session ON messages (session_id, timestamp, sequence) WHERE session_id IS NOT NULL;
CREATE INDEX idx_messages_timestamp ON messages (timestamp, sequence);
CREATE INDEX idx_messages_sequence ON messages (sequence);
