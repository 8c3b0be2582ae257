-- Statements about sessions by name. Loaded by queries.py.
-- The columns of a session have the order of storage.sessions.Session. Truth values are sent as numbers:
-- asyncpg would look up the type of their array once for each connection.

-- name: sessions_by_id
SELECT session_id, title, metadata::text, explicit, message_count, providers::text, first_time,
    first_sequence, first_message, last_time, last_sequence, created_at, updated_at, revision, deleting
FROM sessions WHERE session_id = ANY($1::text[])

-- name: lock_sessions
SELECT session_id, title, metadata::text, explicit, message_count, providers::text, first_time,
    first_sequence, first_message, last_time, last_sequence, created_at, updated_at, revision, deleting
FROM sessions WHERE session_id = ANY($1::text[]) ORDER BY session_id FOR UPDATE

-- name: complete_sessions
-- Makes rows that are missing from the messages of their sessions.
INSERT INTO sessions (session_id, title, metadata, explicit, message_count, providers, first_time,
    first_sequence, first_message, last_time, last_sequence, created_at, updated_at, revision, deleting)
SELECT m.session_id, '', '{}'::jsonb, false, count(*),
    (SELECT jsonb_object_agg(p.provider, p.messages) FROM (
        SELECT provider, count(*) AS messages FROM messages
        WHERE messages.session_id = m.session_id GROUP BY provider
    ) AS p),
    min(m.timestamp),
    (array_agg(m.sequence ORDER BY m.timestamp, m.sequence))[1],
    (array_agg(left(m.content, 200) ORDER BY m.timestamp, m.sequence))[1],
    max(m.timestamp), max(m.sequence), min(coalesce(m.created_at, m.timestamp)),
    max(coalesce(m.created_at, m.timestamp)), max(m.revision), 0
FROM messages AS m WHERE m.session_id = ANY($1::text[]) GROUP BY m.session_id
ON CONFLICT (session_id) DO NOTHING

-- name: write_sessions
-- Updates the sessions that were locked and inserts the others. Returns how many it has written:
-- fewer, if another server has inserted one meanwhile.
WITH given AS (
    SELECT session_id, title, metadata::jsonb, explicit <> 0 AS explicit, message_count, providers::jsonb,
        first_time, first_sequence, first_message, last_time, last_sequence, created_at, updated_at,
        revision, deleting, known <> 0 AS known
    FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[],
        $7::timestamptz[], $8::bigint[], $9::text[], $10::timestamptz[], $11::bigint[],
        $12::timestamptz[], $13::timestamptz[], $14::bigint[], $15::bigint[], $16::bigint[])
        AS given (session_id, title, metadata, explicit, message_count, providers, first_time,
        first_sequence, first_message, last_time, last_sequence, created_at, updated_at, revision,
        deleting, known)
), updated AS (
    UPDATE sessions AS old
    SET title = new.title, metadata = new.metadata, explicit = new.explicit,
        message_count = new.message_count, providers = new.providers, first_time = new.first_time,
        first_sequence = new.first_sequence, first_message = new.first_message,
        last_time = new.last_time, last_sequence = new.last_sequence, created_at = new.created_at,
        updated_at = new.updated_at, revision = new.revision, deleting = new.deleting
    FROM given AS new WHERE new.known AND old.session_id = new.session_id
    RETURNING 1
), inserted AS (
    INSERT INTO sessions (session_id, title, metadata, explicit, message_count, providers, first_time,
        first_sequence, first_message, last_time, last_sequence, created_at, updated_at, revision, deleting)
    SELECT session_id, title, metadata, explicit, message_count, providers, first_time, first_sequence,
        first_message, last_time, last_sequence, created_at, updated_at, revision, deleting
    FROM given WHERE NOT known ORDER BY session_id
    ON CONFLICT (session_id) DO NOTHING
    RETURNING 1
)
SELECT (SELECT count(*) FROM updated) + (SELECT count(*) FROM inserted)

-- name: session_ends
-- The ends of sessions that have messages: the id, then storage.session_changes.SessionEnds.
SELECT wanted.session_id, f.timestamp, f.sequence, left(f.content, 200), l.timestamp, s.sequence
FROM unnest($1::text[]) AS wanted (session_id),
LATERAL (
    SELECT timestamp, sequence, content FROM messages AS m WHERE m.session_id = wanted.session_id
    ORDER BY timestamp, sequence LIMIT 1
) AS f,
LATERAL (
    SELECT timestamp FROM messages AS m WHERE m.session_id = wanted.session_id
    ORDER BY timestamp DESC, sequence DESC LIMIT 1
) AS l,
LATERAL (SELECT max(sequence) AS sequence FROM messages AS m WHERE m.session_id = wanted.session_id) AS s

-- name: deletable
SELECT s.deleting, m.id FROM sessions AS s
LEFT JOIN messages AS m ON m.session_id = s.session_id AND m.sequence <= s.deleting
WHERE s.session_id = $1 LIMIT $2

-- name: deleting
SELECT session_id FROM sessions WHERE deleting > 0 ORDER BY session_id LIMIT $1

-- name: scan_sessions
SELECT session_id, title, metadata::text, explicit, message_count, providers::text, first_time,
    first_sequence, first_message, last_time, last_sequence, created_at, updated_at, revision, deleting
FROM sessions
WHERE session_id >= $1::text AND (session_id > $1::text OR $2::boolean) AND session_id <= $3
ORDER BY session_id LIMIT $4

-- name: last_session
SELECT max(session_id) FROM sessions

-- name: count_sessions
SELECT count(*) FROM sessions

-- name: forget_sessions
DELETE FROM sessions WHERE session_id = ANY($1::text[])

-- name: upsert_sessions
-- Rows of the source of a migration; newer rows stay.
INSERT INTO sessions (session_id, title, metadata, explicit, message_count, providers, first_time,
    first_sequence, first_message, last_time, last_sequence, created_at, updated_at, revision, deleting)
SELECT session_id, title, metadata::jsonb, explicit <> 0, message_count, providers::jsonb, first_time,
    first_sequence, first_message, last_time, last_sequence, created_at, updated_at, revision, deleting
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[],
    $7::timestamptz[], $8::bigint[], $9::text[], $10::timestamptz[], $11::bigint[],
    $12::timestamptz[], $13::timestamptz[], $14::bigint[], $15::bigint[])
    AS given (session_id, title, metadata, explicit, message_count, providers, first_time,
    first_sequence, first_message, last_time, last_sequence, created_at, updated_at, revision, deleting)
ON CONFLICT (session_id) DO UPDATE SET title = excluded.title, metadata = excluded.metadata,
    explicit = excluded.explicit, message_count = excluded.message_count,
    providers = excluded.providers, first_time = excluded.first_time,
    first_sequence = excluded.first_sequence, first_message = excluded.first_message,
    last_time = excluded.last_time, last_sequence = excluded.last_sequence,
    created_at = excluded.created_at, updated_at = excluded.updated_at, revision = excluded.revision,
    deleting = excluded.deleting
WHERE sessions.revision < excluded.revision
