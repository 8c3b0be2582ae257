-- Statements about sessions by name. Loaded by queries.py.
-- The columns of a session have the order of storage.sessions.Session.

-- name: sessions_by_id
SELECT session_id, title, metadata, explicit, message_count, providers, first_time, first_sequence,
    first_message, last_time, last_sequence, created_at, updated_at, revision, deleting
FROM sessions WHERE session_id IN (SELECT value FROM json_each(?))

-- name: upsert_sessions
INSERT INTO sessions (session_id, title, metadata, explicit, message_count, providers, first_time,
    first_sequence, first_message, last_time, last_sequence, created_at, updated_at, revision, deleting)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (session_id) DO UPDATE SET title = excluded.title, metadata = excluded.metadata,
    explicit = excluded.explicit, message_count = excluded.message_count,
    providers = excluded.providers, first_time = excluded.first_time,
    first_sequence = excluded.first_sequence, first_message = excluded.first_message,
    last_time = excluded.last_time, last_sequence = excluded.last_sequence,
    created_at = excluded.created_at, updated_at = excluded.updated_at, revision = excluded.revision,
    deleting = excluded.deleting

-- name: session_ends
-- The ends of a session that has messages, as storage.session_changes.SessionEnds.
SELECT first.timestamp, first.number, substr(first.content, 1, 200),
    (SELECT max(timestamp) FROM messages WHERE session_id = ?1),
    (SELECT max(number) FROM messages INDEXED BY idx_messages_session WHERE session_id = ?1)
FROM (
    SELECT timestamp, number, content FROM messages WHERE session_id = ?1 ORDER BY timestamp, number LIMIT 1
) AS first

-- name: fill_sessions
-- Makes the sessions of the messages that a file had before it had sessions.
INSERT INTO sessions (session_id, title, metadata, explicit, message_count, providers, first_time,
    first_sequence, first_message, last_time, last_sequence, created_at, updated_at, revision, deleting)
SELECT m.session_id, '', '{}', 0, count(*),
    (SELECT json_group_object(provider, messages) FROM (
        SELECT provider, count(*) AS messages FROM messages AS p
        WHERE p.session_id = m.session_id GROUP BY provider
    )),
    min(m.timestamp),
    (SELECT number FROM messages AS f WHERE f.session_id = m.session_id ORDER BY timestamp, number LIMIT 1),
    (SELECT substr(content, 1, 200) FROM messages AS f WHERE f.session_id = m.session_id
        ORDER BY timestamp, number LIMIT 1),
    max(m.timestamp), max(m.number), min(coalesce(m.created_at, m.timestamp)),
    max(coalesce(m.created_at, m.timestamp)), max(m.revision), 0
FROM messages AS m WHERE m.session_id IS NOT NULL GROUP BY m.session_id

-- name: deletable
SELECT s.deleting, m.id FROM sessions AS s
LEFT JOIN messages AS m INDEXED BY idx_messages_session ON m.session_id = s.session_id AND m.number <= s.deleting
WHERE s.session_id = ? LIMIT ?

-- name: deleting
SELECT session_id FROM sessions WHERE deleting > 0 ORDER BY session_id LIMIT ?

-- name: scan_sessions
SELECT session_id, title, metadata, explicit, message_count, providers, first_time, first_sequence,
    first_message, last_time, last_sequence, created_at, updated_at, revision, deleting
FROM sessions
WHERE session_id >= ?1 AND (session_id > ?1 OR ?2) AND session_id <= ?3 ORDER BY session_id LIMIT ?4

-- name: last_session
SELECT max(session_id) FROM sessions

-- name: count_sessions
SELECT count(*) FROM sessions

-- name: journal_some_sessions
-- Adds the next sessions to the journal: sequences follow ?1, sessions follow ?2, or begin with it (?5).
INSERT INTO journal (sequence, kind, id, written_at)
SELECT ?1 + row_number() OVER (ORDER BY session_id), 1, session_id, ?3
FROM (
    SELECT session_id FROM sessions WHERE session_id >= ?2 AND (session_id > ?2 OR ?5)
    ORDER BY session_id LIMIT ?4
)

-- name: rejournal_sessions
-- The sessions that changed after ?1. If a message has the revision of the session, the session comes
-- with the entry of the message.
INSERT INTO journal (sequence, kind, id, written_at)
SELECT revision, 1, session_id, ?2 FROM sessions WHERE revision > ?1
ON CONFLICT (sequence) DO NOTHING

-- name: rejournal_older_sessions
-- The others, with sequences after ?3: a target that was set back may lack sessions that were copied by
-- way of the journal, whatever their revision is.
INSERT INTO journal (sequence, kind, id, written_at)
SELECT ?3 + row_number() OVER (ORDER BY session_id), 1, session_id, ?2 FROM sessions WHERE revision <= ?1
