-- Change journal for the migration target. Used only during a migration (store_state `migration`,
-- JSON). A change and its entry are in one transaction, so neither exists without the other.
-- `sequence` is the revision of the change, or a number from the same counter. Entries that the
-- target has confirmed are removed; store_state `journal_pruned` is the sequence up to which the
-- journal may have gaps.
CREATE TABLE journal (
    sequence INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    written_at INTEGER NOT NULL,
    forced INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Guards: if another program removed an entry, the target would never get that change.
CREATE TRIGGER journal_insert_guard BEFORE INSERT ON journal
BEGIN SELECT sagastore_server_owns_this_file(); END;
CREATE TRIGGER journal_update_guard BEFORE UPDATE ON journal
BEGIN SELECT sagastore_server_owns_this_file(); END;
CREATE TRIGGER journal_delete_guard BEFORE DELETE ON journal
BEGIN SELECT sagastore_server_owns_this_file(); END;
