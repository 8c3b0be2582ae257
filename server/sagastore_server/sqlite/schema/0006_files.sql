-- Files: one record per file, with typed columns. Times are microseconds since 1970-01-01 UTC, `tags`
-- and `metadata` are canonical JSON, and `extra` has the values of unknown columns of a legacy table as
-- a JSON object. The server converts the rows of the former table (legacy/files.py) in the transaction
-- of this step, and drops it.
DROP TRIGGER files_insert_guard;
DROP TRIGGER files_update_guard;
DROP TRIGGER files_delete_guard;
ALTER TABLE files RENAME TO files_before_sagastore;
CREATE TABLE files (
    id TEXT NOT NULL PRIMARY KEY,
    filename TEXT NOT NULL,
    filepath TEXT NOT NULL,
    file_type TEXT NOT NULL,
    extracted_text TEXT NOT NULL,
    tags TEXT NOT NULL,
    file_size INTEGER NOT NULL,
    uploaded_at INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    created_at INTEGER,
    revision INTEGER NOT NULL,
    extra TEXT NOT NULL
) STRICT;

-- The order of a list of files.
CREATE INDEX idx_files_uploaded ON files (uploaded_at, id);

-- Tombstones of files, as those of messages: their ids are unrelated.
CREATE TABLE file_tombstones (
    id TEXT PRIMARY KEY,
    revision INTEGER NOT NULL,
    deleted_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Guards, as in step 3. Entries of the journal for files have the kind 2.
CREATE TRIGGER files_insert_guard BEFORE INSERT ON files WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;
CREATE TRIGGER files_update_guard BEFORE UPDATE ON files WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;
CREATE TRIGGER files_delete_guard BEFORE DELETE ON files WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;
