-- Statements of the live migration by name: journal and auxiliary rows. Loaded by queries.py.

-- name: journal
INSERT INTO journal (sequence, kind, id, written_at) VALUES (?, ?, ?, ?)

-- name: journal_forced
INSERT INTO journal (sequence, kind, id, written_at, forced) VALUES (?, ?, ?, ?, 1)

-- name: rejournal_messages
INSERT INTO journal (sequence, id, written_at)
SELECT revision, id, ?2 FROM messages WHERE revision > ?1
ON CONFLICT (sequence) DO NOTHING

-- name: rejournal_tombstones
INSERT INTO journal (sequence, id, written_at)
SELECT revision, id, ?2 FROM tombstones WHERE revision > ?1
ON CONFLICT (sequence) DO NOTHING

-- name: empty_journal
DELETE FROM journal

-- name: entries
-- A session comes with the first entry that concerns it. The rows are what is stored now.
WITH batch AS MATERIALIZED (
    SELECT sequence, kind, id, forced, written_at, CASE kind
        WHEN 0 THEN (SELECT session_id FROM messages WHERE messages.id = journal.id)
        WHEN 1 THEN id END AS session_id
    FROM journal WHERE sequence > ? ORDER BY sequence LIMIT ?
), numbered AS (
    SELECT *, row_number() OVER (PARTITION BY session_id ORDER BY sequence) AS nth FROM batch
)
SELECT j.sequence, j.kind, j.id, coalesce(t.revision, u.revision, 0), j.forced, j.written_at,
    m.id, m.provider, m.role, m.content, m.tags, m.timestamp, m.metadata, m.session_id,
    m.created_at, m.revision, m.number,
    s.session_id, s.title, s.metadata, s.explicit, s.message_count, s.providers, s.first_time,
    s.first_sequence, s.first_message, s.last_time, s.last_sequence, s.created_at, s.updated_at,
    s.revision, s.deleting,
    f.id, f.filename, f.filepath, f.file_type, f.extracted_text, f.tags, f.file_size, f.uploaded_at,
    f.metadata, f.created_at, f.revision, f.extra
FROM numbered AS j
LEFT JOIN messages AS m ON j.kind = 0 AND m.id = j.id
LEFT JOIN tombstones AS t ON j.kind = 0 AND t.id = j.id
LEFT JOIN files AS f ON j.kind = 2 AND f.id = j.id
LEFT JOIN file_tombstones AS u ON j.kind = 2 AND u.id = j.id
LEFT JOIN sessions AS s ON j.nth = 1 AND s.session_id = j.session_id
ORDER BY j.sequence

-- name: journalled_id
SELECT id FROM journal WHERE sequence = ?

-- name: journal_status
SELECT
    (SELECT count(*) FROM journal WHERE sequence > ?1),
    (SELECT written_at FROM journal WHERE sequence > ?1 ORDER BY sequence LIMIT 1),
    coalesce((SELECT value FROM store_state WHERE name = 'journal_pruned'), 0)

-- name: prunable
SELECT max(sequence) FROM (SELECT sequence FROM journal WHERE sequence <= ? ORDER BY sequence LIMIT ?)

-- name: prune
DELETE FROM journal WHERE sequence <= ?

-- name: extras
SELECT message_id, name, typeof(value),
    CASE typeof(value) WHEN 'text' THEN CAST(value AS BLOB) ELSE value END
FROM legacy_extra WHERE (message_id, name) > (?, ?) ORDER BY message_id, name LIMIT ?

-- name: pending_records
-- Of one snapshot: a row for each record with an entry after ?1, and whether it is stored now; and
-- rows of kind -1 with the numbers of all records. The entry of a message also stands for the
-- session that it belongs to now.
WITH pending AS MATERIALIZED (
    SELECT DISTINCT kind, id FROM (SELECT kind, id FROM journal WHERE sequence > ?1 LIMIT ?2)
), concerned AS MATERIALIZED (
    SELECT id FROM pending WHERE kind = 1
    UNION
    SELECT m.session_id FROM pending AS p JOIN messages AS m ON p.kind = 0 AND m.id = p.id
    WHERE m.session_id IS NOT NULL
)
SELECT -1, 'pruned', coalesce((SELECT value FROM store_state WHERE name = 'journal_pruned'), 0)
UNION ALL SELECT -1, 'entries',
    (SELECT count(*) FROM (SELECT 1 FROM journal WHERE sequence > ?1 LIMIT ?2))
UNION ALL SELECT -1, 'messages', (SELECT count(*) FROM messages)
UNION ALL SELECT -1, 'sessions',
    (SELECT count(*) FROM sessions WHERE explicit OR message_count > 0)
UNION ALL SELECT -1, 'files', (SELECT count(*) FROM files)
UNION ALL SELECT 0, p.id, EXISTS (SELECT 1 FROM messages AS m WHERE m.id = p.id)
    FROM pending AS p WHERE kind = 0
UNION ALL SELECT 1, c.id, EXISTS (
        SELECT 1 FROM sessions AS s
        WHERE s.session_id = c.id AND (s.explicit OR s.message_count > 0)
    ) FROM concerned AS c
UNION ALL SELECT 2, p.id, EXISTS (SELECT 1 FROM files AS f WHERE f.id = p.id)
    FROM pending AS p WHERE kind = 2
