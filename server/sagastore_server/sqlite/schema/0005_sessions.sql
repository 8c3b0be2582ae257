-- Sessions: one row per conversation, changed in the transaction of its messages. A session without
-- messages that was not created by itself (`explicit`) does not exist; its row stays, so that its
-- revision keeps growing. `providers` is a JSON object: messages by provider. `deleting`: messages up
-- to this sequence are being deleted; 0: none. Times are microseconds since 1970-01-01 UTC.
CREATE TABLE sessions (
    session_id TEXT NOT NULL PRIMARY KEY,
    title TEXT NOT NULL,
    metadata TEXT NOT NULL,
    explicit INTEGER NOT NULL,
    message_count INTEGER NOT NULL,
    providers TEXT NOT NULL,
    first_time INTEGER,
    first_sequence INTEGER NOT NULL,
    first_message TEXT NOT NULL,
    last_time INTEGER,
    last_sequence INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    deleting INTEGER NOT NULL,
    active_at INTEGER GENERATED ALWAYS AS (coalesce(last_time, created_at)) VIRTUAL
) STRICT;

-- The order of a list of sessions, and the deletions to resume after a crash.
CREATE INDEX idx_sessions_active ON sessions (active_at, session_id) WHERE explicit OR message_count > 0;
CREATE INDEX idx_sessions_deleting ON sessions (session_id) WHERE deleting > 0;

-- Guards, as in step 3.
CREATE TRIGGER sessions_insert_guard BEFORE INSERT ON sessions WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;
CREATE TRIGGER sessions_update_guard BEFORE UPDATE ON sessions WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;
CREATE TRIGGER sessions_delete_guard BEFORE DELETE ON sessions WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;

-- What `id` of a journal entry names: 0 a message, 1 a session. The entry of a message also stands
-- for the session that it belongs to now; a session that it left has an entry of its own.
ALTER TABLE journal ADD COLUMN kind INTEGER NOT NULL DEFAULT 0;
