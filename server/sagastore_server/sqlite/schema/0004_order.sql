-- Order of conversations: `messages.number` becomes the sequence of a message, the order in which
-- messages were first stored. Messages of earlier versions keep their number, which has that order;
-- a new one gets the revision under which it appears. So the counter of revisions must be at least
-- the greatest number.
UPDATE store_state SET value = max(value, (SELECT coalesce(max(number), 0) FROM messages))
WHERE name = 'revision';

-- Chronological order of a session, and of all messages. Each ends with `number`, as every index of
-- SQLite ends with the row id. A query seeks a pair in it only if the second value is written
-- `? COLLATE BINARY`, as a row id has no collation; otherwise SQLite steps over all rows with the
-- timestamp of the first.
DROP INDEX idx_messages_session;
CREATE INDEX idx_messages_session ON messages (session_id, timestamp) WHERE session_id IS NOT NULL;
DROP INDEX idx_messages_timestamp;
CREATE INDEX idx_messages_timestamp ON messages (timestamp);

-- Number of messages, kept in the transaction of each change.
INSERT INTO store_state (name, value) SELECT 'messages', count(*) FROM messages WHERE true
ON CONFLICT (name) DO UPDATE SET value = excluded.value;
