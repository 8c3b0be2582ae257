-- The revision for which `terms` and `search` were computed by analysis version 3 or newer. If it is
-- not the revision of the row, the row is analysed again (reanalysis.py): it is older, or a server of
-- an older version has written it since.
ALTER TABLE messages ADD COLUMN analysed_3 BIGINT NOT NULL DEFAULT 0;
