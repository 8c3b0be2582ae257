-- Analysis of stored messages by another version (reanalysis.py). While it runs, `messages_fts_former`
-- has the terms of the former version, and `messages_fts` those of the present one: of the messages up
-- to the cursor in `store_state`, of newer messages, and of those listed here, which were changed
-- before the cursor reached them.
CREATE TABLE reanalysed (number INTEGER PRIMARY KEY) STRICT;
