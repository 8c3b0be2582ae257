-- Files: typed columns instead of the SQLite values. `extra` has the values of unknown columns of a
-- legacy table, as a JSON object. The server converts the rows of the former table
-- (file_conversion.py) in the transaction of this step, and drops it.
ALTER TABLE files RENAME TO files_before_conversion;
ALTER INDEX files_pkey RENAME TO files_before_conversion_pkey;
CREATE TABLE files (
    id TEXT COLLATE "C" PRIMARY KEY,
    filename TEXT NOT NULL,
    filepath TEXT NOT NULL,
    file_type TEXT NOT NULL,
    extracted_text TEXT NOT NULL,
    tags JSONB NOT NULL,
    file_size BIGINT NOT NULL,
    uploaded_at TIMESTAMPTZ NOT NULL,
    metadata JSONB NOT NULL,
    created_at TIMESTAMPTZ,
    revision BIGINT NOT NULL,
    extra TEXT NOT NULL
);

-- The order of a list of files.
CREATE INDEX idx_files_uploaded ON files (uploaded_at, id);

-- Tombstones of files, as those of messages: their ids are unrelated.
CREATE TABLE file_tombstones (
    id TEXT COLLATE "C" PRIMARY KEY,
    revision BIGINT NOT NULL,
    deleted_at TIMESTAMPTZ NOT NULL
);

-- The target of an unfinished migration gets its files from SQLite. A step that has copied the rows
-- that are not messages is repeated.
UPDATE migration SET backfill_carried = false,
    backfill_state = CASE backfill_state WHEN 'done' THEN 'running' ELSE backfill_state END
WHERE phase < 5;
DELETE FROM files_before_conversion WHERE EXISTS (SELECT FROM migration WHERE phase < 5);
