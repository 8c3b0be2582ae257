-- Static statements by name. Loaded by queries.py.
-- The columns of a message have the order of storage.model.Message; `number` is its sequence.

-- name: get
SELECT id, provider, role, content, tags, timestamp, metadata, session_id, created_at, revision, number
FROM messages WHERE id = ?

-- name: batch_get
SELECT id, provider, role, content, tags, timestamp, metadata, session_id, created_at, revision, number
FROM messages WHERE id IN (SELECT value FROM json_each(?))

-- name: insert
INSERT INTO messages
    (id, provider, role, content, tags, timestamp, metadata, session_id, created_at, revision, number)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: update
UPDATE messages
SET provider = ?, role = ?, content = ?, tags = ?, timestamp = ?, metadata = ?, session_id = ?,
    created_at = ?, revision = ?
WHERE number = ?

-- name: delete
DELETE FROM messages WHERE number = ?

-- name: index
INSERT INTO messages_fts (rowid, stems, words, facts) VALUES (?, ?, ?, ?)

-- name: unindex
INSERT INTO messages_fts (messages_fts, rowid, stems, words, facts) VALUES ('delete', ?, ?, ?, ?)

-- name: bury
INSERT INTO tombstones (id, revision, deleted_at) VALUES (?, ?, ?)
ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, deleted_at = excluded.deleted_at

-- name: set_state
INSERT INTO store_state (name, value) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET value = excluded.value

-- name: get_state
SELECT value FROM store_state WHERE name = ?

-- name: last_id
SELECT max(id) FROM messages

-- name: scan_ids
SELECT id, provider, role, content, tags, timestamp, metadata, session_id, created_at, revision, number
FROM messages WHERE id > ? AND id <= ? ORDER BY id LIMIT ?

-- name: last_sequence
SELECT coalesce(max(number), 0) FROM messages

-- name: scan_sequences
SELECT id, provider, role, content, tags, timestamp, metadata, session_id, created_at, revision, number
FROM messages WHERE number > ? AND number <= ? ORDER BY number LIMIT ?

-- COLLATE BINARY: see schema/0004_order.sql.

-- name: session_oldest
SELECT id, provider, role, content, tags, timestamp, metadata, session_id, created_at, revision, number
FROM messages
WHERE session_id = ?1 AND (timestamp, number) > (?2, ?3 COLLATE BINARY)
    AND (timestamp, number) <= (?4, ?5 COLLATE BINARY)
ORDER BY timestamp, number LIMIT ?6

-- name: session_newest
SELECT id, provider, role, content, tags, timestamp, metadata, session_id, created_at, revision, number
FROM messages
WHERE session_id = ?1 AND (timestamp, number) < (?2, ?3 COLLATE BINARY)
    AND (timestamp, number) >= (?4, ?5 COLLATE BINARY)
ORDER BY timestamp DESC, number DESC LIMIT ?6

-- name: count_messages
SELECT count(*) FROM messages

-- name: count_records
SELECT (SELECT count(*) FROM messages),
    (SELECT count(*) FROM sessions WHERE explicit OR message_count > 0),
    (SELECT count(*) FROM files)

-- name: quarantine
SELECT number, source_key, reason, field, row FROM quarantine WHERE number > ? ORDER BY number LIMIT ?

-- name: quarantine_count
SELECT count(*) FROM quarantine

-- name: all_texts
SELECT number, content, tags, metadata FROM messages ORDER BY number

-- name: clear_index
INSERT INTO messages_fts (messages_fts) VALUES ('delete-all')
