-- What has changed, for a store that follows. Filled only while a migration is under way
-- (store_state `migration`, JSON): each change writes its entry in its own transaction, so
-- neither is ever there without the other. `sequence` is the revision that the change was
-- given, or a number from the same counter. Entries that the follower has confirmed are
-- removed; store_state `journal_pruned` says up to which sequence the journal may have gaps.
CREATE TABLE journal (
    sequence INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    written_at INTEGER NOT NULL,
    forced INTEGER NOT NULL DEFAULT 0
) STRICT;

-- An entry that somebody else removed would be a change that the follower never hears of.
CREATE TRIGGER journal_insert_guard BEFORE INSERT ON journal
BEGIN SELECT sagastore_server_owns_this_file(); END;
CREATE TRIGGER journal_update_guard BEFORE UPDATE ON journal
BEGIN SELECT sagastore_server_owns_this_file(); END;
CREATE TRIGGER journal_delete_guard BEFORE DELETE ON journal
BEGIN SELECT sagastore_server_owns_this_file(); END;
