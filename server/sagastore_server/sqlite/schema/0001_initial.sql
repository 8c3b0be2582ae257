-- Initial schema. Applied in one transaction, with user_version = 1.

-- One row per message. `number` is a named alias of the rowid, because VACUUM renumbers an unnamed
-- rowid and the full-text index refers to it. Times are microseconds since 1970-01-01 UTC. `tags`
-- and `metadata` are canonical JSON.
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

-- Chronological order of a session, and of all messages.
CREATE INDEX idx_messages_session ON messages (session_id, timestamp, id) WHERE session_id IS NOT NULL;
CREATE INDEX idx_messages_timestamp ON messages (timestamp, id);

-- Full-text index by messages.number: the stems of the content, the words whose stem differs, and
-- a token for each tag and each metadata value. The server computes the tokens (see search/), so
-- the tokenizer only splits at spaces. The index stores no copy of the text.
CREATE VIRTUAL TABLE messages_fts USING fts5 (
    stems, words, facts, content = '', columnsize = 0, tokenize = 'ascii'
);

-- Tombstones: the revision of the last deletion of an id. If the message exists with a greater
-- revision, the id was saved again later.
CREATE TABLE tombstones (
    id TEXT PRIMARY KEY,
    revision INTEGER NOT NULL,
    deleted_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Rows of a legacy file that no message represents without loss, with their raw values.
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

-- Files of the legacy application. Not served; a migration copies them. A legacy import keeps the
-- existing table.
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

-- State of the store: `revision` (the last one assigned), `analysis` (analysis version of the
-- full-text index), `store_id`, `takeover` (JSON, if the file was imported).
CREATE TABLE store_state (
    name TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- Guard triggers that refuse every other writer: only the server's writing connection defines the
-- function. The legacy application, or the sqlite3 shell, gets the error "no such function:
-- sagastore_server_owns_this_file".
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
