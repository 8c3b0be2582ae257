-- Sessions: one row per conversation, changed in the transaction of its messages. A session without
-- messages that was not created by itself (`explicit`) does not exist; its row stays, so that its
-- revision keeps growing. `providers` is a JSON object: messages by provider. `deleting`: messages up
-- to this sequence are being deleted; 0: none. Whoever changes a message of a session first locks the
-- row of the session, then that of the message.
CREATE TABLE sessions (
    session_id TEXT COLLATE "C" PRIMARY KEY,
    title TEXT NOT NULL,
    metadata JSONB NOT NULL,
    explicit BOOLEAN NOT NULL,
    message_count BIGINT NOT NULL,
    providers JSONB NOT NULL,
    first_time TIMESTAMPTZ,
    first_sequence BIGINT NOT NULL,
    first_message TEXT NOT NULL,
    last_time TIMESTAMPTZ,
    last_sequence BIGINT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    revision BIGINT NOT NULL,
    deleting BIGINT NOT NULL,
    active_at TIMESTAMPTZ NOT NULL GENERATED ALWAYS AS (coalesce(last_time, created_at)) STORED
);

-- The order of a list of sessions, and the deletions to resume after a crash.
CREATE INDEX idx_sessions_active ON sessions (active_at, session_id) WHERE explicit OR message_count > 0;
CREATE INDEX idx_sessions_deleting ON sessions (session_id) WHERE deleting > 0;

-- The sessions of the messages that a store had before it had sessions. A migration target gets them
-- from SQLite.
INSERT INTO sessions (session_id, title, metadata, explicit, message_count, providers, first_time,
    first_sequence, first_message, last_time, last_sequence, created_at, updated_at, revision, deleting)
SELECT session_id, '', '{}'::jsonb, false, sum(messages)::bigint, jsonb_object_agg(provider, messages),
    min(first_time), 0, '', max(last_time), max(last_sequence), min(created_at), max(updated_at),
    max(revision), 0
FROM (
    SELECT session_id, provider, count(*) AS messages, min(timestamp) AS first_time,
        max(timestamp) AS last_time, max(sequence) AS last_sequence,
        min(coalesce(created_at, timestamp)) AS created_at,
        max(coalesce(created_at, timestamp)) AS updated_at, max(revision) AS revision
    FROM messages
    WHERE session_id IS NOT NULL AND NOT EXISTS (SELECT FROM migration WHERE phase < 5)
    GROUP BY session_id, provider
) AS counted GROUP BY session_id;

UPDATE sessions AS s SET first_sequence = f.sequence, first_message = left(f.content, 200)
FROM (
    SELECT DISTINCT ON (session_id) session_id, sequence, content FROM messages
    WHERE session_id IS NOT NULL ORDER BY session_id, timestamp, sequence
) AS f WHERE f.session_id = s.session_id;
