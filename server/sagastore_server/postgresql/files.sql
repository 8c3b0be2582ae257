-- Statements about file records by name. Loaded by queries.py.
-- The columns of a file have the order of storage.files.File.

-- name: files_by_id
SELECT id, filename, filepath, file_type, extracted_text, tags::text, file_size, uploaded_at,
    metadata::text, created_at, revision, extra
FROM files WHERE id = ANY($1::text[])

-- name: lock_files
SELECT id, filename, filepath, file_type, extracted_text, tags::text, file_size, uploaded_at,
    metadata::text, created_at, revision, extra
FROM files WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE

-- name: insert_files
INSERT INTO files (id, filename, filepath, file_type, extracted_text, tags, file_size, uploaded_at,
    metadata, created_at, revision, extra)
SELECT id, filename, filepath, file_type, extracted_text, tags::jsonb, file_size, uploaded_at,
    metadata::jsonb, created_at, revision, extra
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[],
    $8::timestamptz[], $9::text[], $10::timestamptz[], $11::bigint[], $12::text[])
    AS new (id, filename, filepath, file_type, extracted_text, tags, file_size, uploaded_at, metadata,
    created_at, revision, extra)
ORDER BY id
ON CONFLICT (id) DO NOTHING
RETURNING id

-- name: update_files
UPDATE files AS old
SET filename = new.filename, filepath = new.filepath, file_type = new.file_type,
    extracted_text = new.extracted_text, tags = new.tags::jsonb, file_size = new.file_size,
    uploaded_at = new.uploaded_at, metadata = new.metadata::jsonb, created_at = new.created_at,
    revision = new.revision, extra = new.extra
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[],
    $8::timestamptz[], $9::text[], $10::timestamptz[], $11::bigint[], $12::text[])
    AS new (id, filename, filepath, file_type, extracted_text, tags, file_size, uploaded_at, metadata,
    created_at, revision, extra)
WHERE old.id = new.id
RETURNING old.id

-- name: delete_files
DELETE FROM files WHERE id = ANY($1::text[])

-- name: bury_files
INSERT INTO file_tombstones (id, revision, deleted_at)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::timestamptz[])
ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, deleted_at = excluded.deleted_at

-- name: outlived_files
-- Whether an inserted id was deleted under a greater revision after its own was taken, as `outlived`.
SELECT EXISTS (SELECT FROM file_tombstones WHERE id = ANY($1::text[]) AND revision >= $2::bigint)

-- name: list_files
-- Files before ($1, $2) in the order of upload, with all tags of the JSON list $3: up to $4 files and
-- about $5 bytes, but at least two, because one file may fill a page.
SELECT id, filename, filepath, file_type, extracted_text, tags::text, file_size, uploaded_at,
    metadata::text, created_at, revision, extra
FROM (
    SELECT *, sum(weight) OVER running - weight AS before, row_number() OVER running AS place
    FROM (
        SELECT *, (octet_length(extracted_text) + octet_length(extra) + pg_column_size(metadata) / 4 + 1024)
            ::bigint AS weight
        FROM files
        WHERE (uploaded_at, id) < ($1::timestamptz, $2::text) AND tags @> $3::jsonb
        ORDER BY uploaded_at DESC, id DESC LIMIT $4
    ) AS found WINDOW running AS (ORDER BY uploaded_at DESC, id DESC ROWS UNBOUNDED PRECEDING)
) AS weighed
WHERE before <= $5::bigint OR place <= 2 ORDER BY uploaded_at DESC, id DESC

-- name: scan_files
SELECT id, filename, filepath, file_type, extracted_text, tags::text, file_size, uploaded_at,
    metadata::text, created_at, revision, extra
FROM (
    SELECT *, sum(weight) OVER running - weight AS before, row_number() OVER running AS place
    FROM (
        SELECT *, (octet_length(extracted_text) + octet_length(extra) + pg_column_size(metadata) / 4 + 1024)
            ::bigint AS weight
        FROM files WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3
    ) AS found WINDOW running AS (ORDER BY id ROWS UNBOUNDED PRECEDING)
) AS weighed
WHERE before <= $4::bigint OR place <= 2 ORDER BY id

-- name: last_file
SELECT max(id) FROM files

-- name: count_files
SELECT count(*) FROM files

-- name: forget_files
-- Removes the rows and the tombstones of some ids.
WITH forgotten AS (DELETE FROM file_tombstones WHERE id = ANY($1::text[]))
DELETE FROM files WHERE id = ANY($1::text[])

-- name: apply_burials
WITH gone AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::timestamptz[]) AS gone (id, revision, deleted_at)
), deleted AS (
    DELETE FROM files AS old USING gone WHERE old.id = gone.id AND old.revision < gone.revision
)
INSERT INTO file_tombstones (id, revision, deleted_at) SELECT id, revision, deleted_at FROM gone
ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, deleted_at = excluded.deleted_at
WHERE file_tombstones.revision < excluded.revision

-- name: apply_files
-- Rows of the source of a migration; newer rows and tombstones stay.
INSERT INTO files (id, filename, filepath, file_type, extracted_text, tags, file_size, uploaded_at,
    metadata, created_at, revision, extra)
SELECT id, filename, filepath, file_type, extracted_text, tags::jsonb, file_size, uploaded_at,
    metadata::jsonb, created_at, revision, extra
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[],
    $8::timestamptz[], $9::text[], $10::timestamptz[], $11::bigint[], $12::text[])
    AS new (id, filename, filepath, file_type, extracted_text, tags, file_size, uploaded_at, metadata,
    created_at, revision, extra)
WHERE NOT EXISTS (
    SELECT FROM file_tombstones AS t WHERE t.id = new.id AND t.revision > new.revision
)
ON CONFLICT (id) DO UPDATE SET filename = excluded.filename, filepath = excluded.filepath,
    file_type = excluded.file_type, extracted_text = excluded.extracted_text, tags = excluded.tags,
    file_size = excluded.file_size, uploaded_at = excluded.uploaded_at, metadata = excluded.metadata,
    created_at = excluded.created_at, revision = excluded.revision, extra = excluded.extra
WHERE files.revision < excluded.revision

-- name: former_files
-- The next rows of the former table, in the order of sagastore.legacy.FILE_COLUMNS.
SELECT id, filename, filepath, file_type, extracted_text, tags, file_size, uploaded_at, metadata,
    created_at, extra
FROM files_before_conversion WHERE $1::text IS NULL OR id > $1 ORDER BY id LIMIT $2

-- name: quarantine_file
INSERT INTO quarantine (source_key, reason, field, row) VALUES ($1, $2, $3, $4)
ON CONFLICT (source_key) DO NOTHING

-- name: drop_former_files
DROP TABLE files_before_conversion
