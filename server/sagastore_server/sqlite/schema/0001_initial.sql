-- The store as it begins. Applied in one transaction, with user_version = 1.

-- One row a message. `number` is the rowid under a name of its own, so that
-- VACUUM does not renumber it: the full-text index refers to it. Times are
-- microseconds since 1970-01-01 UTC. `tags` and `metadata` are canonical JSON.
CREATE TABLE messages (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    provider TEXT NOT NULL,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    tags TEXT NOT NULL DEFAULT '[]',
    timestamp INTEGER NOT NULL,
    metadata TEXT NOT NULL DEFAULT '{}',
    session_id TEXT,
    created_at INTEGER,
    revision INTEGER NOT NULL
) STRICT;

-- A session in order; all messages in order.
CREATE INDEX idx_messages_session ON messages (session_id, timestamp, id) WHERE session_id IS NOT NULL;
CREATE INDEX idx_messages_timestamp ON messages (timestamp, id);

-- What search looks up, by messages.number: the terms of the content (stemmed, and
-- as written where the stem differs) and a token for each tag and each value of the
-- metadata. The server makes the tokens (see search/), so the tokenizer only splits
-- at spaces. It keeps no copy of the text.
CREATE VIRTUAL TABLE messages_fts USING fts5 (
    stems, words, facts, content = '', columnsize = 0, tokenize = 'ascii'
);

-- What was deleted, and at which revision. A revision here that is lower than the
-- message's tells of an earlier life of the id.
CREATE TABLE tombstones (
    id TEXT PRIMARY KEY,
    revision INTEGER NOT NULL,
    deleted_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Rows of a legacy file that no message represents faithfully, with their raw values.
CREATE TABLE quarantine (
    number INTEGER PRIMARY KEY,
    source_key TEXT NOT NULL UNIQUE,
    reason TEXT NOT NULL,
    field TEXT NOT NULL,
    row TEXT NOT NULL
) STRICT;

-- Values of columns that a legacy `messages` table had beyond the known ones.
CREATE TABLE legacy_extra (
    message_id TEXT NOT NULL,
    name TEXT NOT NULL,
    value ANY,
    PRIMARY KEY (message_id, name)
) STRICT, WITHOUT ROWID;

-- Files that the legacy application kept. Not served; carried along. A legacy file
-- brings its own table, which stays as it is.
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY,
    filename TEXT NOT NULL,
    filepath TEXT NOT NULL,
    file_type TEXT NOT NULL,
    extracted_text TEXT,
    tags TEXT,
    file_size INTEGER,
    uploaded_at DATETIME NOT NULL,
    metadata TEXT,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP
);

-- Facts about the store itself: `revision` (the last one given out), `analysis` (what
-- the full-text index was built by), `store_id`, `takeover` (JSON, if there was one).
CREATE TABLE store_state (
    name TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- Shuts out every other writer: only the server's writing connection defines the
-- function. The legacy application, or a person with a shell, gets the error "no such
-- function: sagastore_server_owns_this_file" instead of writing behind our back.
CREATE TRIGGER messages_insert_guard BEFORE INSERT ON messages
BEGIN SELECT sagastore_server_owns_this_file(); END;
CREATE TRIGGER messages_update_guard BEFORE UPDATE ON messages
BEGIN SELECT sagastore_server_owns_this_file(); END;
CREATE TRIGGER messages_delete_guard BEFORE DELETE ON messages
BEGIN SELECT sagastore_server_owns_this_file(); END;
CREATE TRIGGER files_insert_guard BEFORE INSERT ON files
BEGIN SELECT sagastore_server_owns_this_file(); END;
CREATE TRIGGER files_update_guard BEFORE UPDATE ON files
BEGIN SELECT sagastore_server_owns_this_file(); END;
CREATE TRIGGER files_delete_guard BEFORE DELETE ON files
BEGIN SELECT sagastore_server_owns_this_file(); END;
