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

-- name: create_index
-- As in schema/0001_initial.sql.
CREATE VIRTUAL TABLE messages_fts USING fts5 (
    stems, words, facts, content = '', columnsize = 0, tokenize = 'ascii'
)

-- name: make_former
ALTER TABLE messages_fts RENAME TO messages_fts_former

-- name: drop_former
DROP TABLE IF EXISTS messages_fts_former

-- name: delete_former_blocks
-- Blocks of its inverted index, in the table that FTS5 keeps them in. Without the records 1 and 10,
-- the averages and the structure (fts5_index.c), FTS5 would take the table for damaged.
DELETE FROM messages_fts_former_data
WHERE id IN (SELECT id FROM messages_fts_former_data WHERE id > 10 LIMIT ?)

-- name: pending
SELECT coalesce((SELECT value FROM store_state WHERE name = 'reanalysis_cursor'), 0),
    coalesce((SELECT value FROM store_state WHERE name = 'reanalysis_upto'), 0)

-- name: reanalysis
SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'messages_fts_former'),
    coalesce((SELECT value FROM store_state WHERE name = 'reanalysis_cursor'), 0),
    coalesce((SELECT value FROM store_state WHERE name = 'reanalysis_upto'), 0)

-- name: count_pending
SELECT (SELECT count(*) FROM messages WHERE number <= ?1), (SELECT count(*) FROM messages WHERE number <= ?2)

-- name: pending_texts
SELECT number, content, tags, metadata FROM messages
WHERE number > ? AND number <= ? ORDER BY number LIMIT ?

-- name: unchanged
SELECT number FROM messages
WHERE number > ? AND number <= ? AND number NOT IN (SELECT number FROM reanalysed)

-- name: note_reanalysed
INSERT OR IGNORE INTO reanalysed (number) VALUES (?)

-- name: which_reanalysed
SELECT number FROM reanalysed WHERE number IN (SELECT value FROM json_each(?))

-- name: forget_reanalysed
DELETE FROM reanalysed WHERE number <= ?
