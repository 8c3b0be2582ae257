-- Statements about file records by name. Loaded by queries.py.
-- The columns of a file have the order of storage.files.File.

-- name: files_by_id
SELECT id, filename, filepath, file_type, extracted_text, tags, file_size, uploaded_at, metadata,
    created_at, revision, extra
FROM files WHERE id IN (SELECT value FROM json_each(?))

-- name: upsert_files
INSERT INTO files (id, filename, filepath, file_type, extracted_text, tags, file_size, uploaded_at,
    metadata, created_at, revision, extra)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET filename = excluded.filename, filepath = excluded.filepath,
    file_type = excluded.file_type, extracted_text = excluded.extracted_text, tags = excluded.tags,
    file_size = excluded.file_size, uploaded_at = excluded.uploaded_at, metadata = excluded.metadata,
    created_at = excluded.created_at, revision = excluded.revision, extra = excluded.extra

-- name: delete_files
DELETE FROM files WHERE id = ?

-- name: bury_files
INSERT INTO file_tombstones (id, revision, deleted_at) VALUES (?, ?, ?)
ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, deleted_at = excluded.deleted_at

-- name: list_files
-- Files before (?1, ?2) in the order of upload, with all tags of the JSON list ?3.
SELECT id, filename, filepath, file_type, extracted_text, tags, file_size, uploaded_at, metadata,
    created_at, revision, extra
FROM files INDEXED BY idx_files_uploaded
WHERE (uploaded_at, id) < (?1, ?2) AND NOT EXISTS (
    SELECT 1 FROM json_each(?3) AS wanted WHERE wanted.value NOT IN (SELECT value FROM json_each(files.tags))
)
ORDER BY uploaded_at DESC, id DESC LIMIT ?4

-- name: scan_files
SELECT id, filename, filepath, file_type, extracted_text, tags, file_size, uploaded_at, metadata,
    created_at, revision, extra
FROM files WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3

-- name: last_file
SELECT max(id) FROM files

-- name: count_files
SELECT count(*) FROM files

-- name: journal_some_files
-- Adds the next files to the journal: sequences follow ?1, files follow ?2.
INSERT INTO journal (sequence, kind, id, written_at)
SELECT ?1 + row_number() OVER (ORDER BY id), 2, id, ?3
FROM (SELECT id FROM files WHERE id > ?2 ORDER BY id LIMIT ?4)

-- name: rejournal_files
INSERT INTO journal (sequence, kind, id, written_at)
SELECT revision, 2, id, ?2 FROM files WHERE revision > ?1
ON CONFLICT (sequence) DO NOTHING

-- name: rejournal_file_tombstones
INSERT INTO journal (sequence, kind, id, written_at)
SELECT revision, 2, id, ?2 FROM file_tombstones WHERE revision > ?1
ON CONFLICT (sequence) DO NOTHING

-- name: rejournal_older_files
-- The others, with sequences after ?3: as for sessions, a target that was set back may lack them.
INSERT INTO journal (sequence, kind, id, written_at)
SELECT ?3 + row_number() OVER (ORDER BY id), 2, id, ?2 FROM files WHERE revision <= ?1
