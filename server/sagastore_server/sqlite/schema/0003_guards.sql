-- The guards of steps 1 and 2 without a function call per row. SQLite resolves the function when it
-- prepares a statement, so other writers are still refused. A call of the function, which is written
-- in Python, would make the writing thread wait for the GIL at each row.
DROP TRIGGER messages_insert_guard;
CREATE TRIGGER messages_insert_guard BEFORE INSERT ON messages WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;
DROP TRIGGER messages_update_guard;
CREATE TRIGGER messages_update_guard BEFORE UPDATE ON messages WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;
DROP TRIGGER messages_delete_guard;
CREATE TRIGGER messages_delete_guard BEFORE DELETE ON messages WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;
DROP TRIGGER files_insert_guard;
CREATE TRIGGER files_insert_guard BEFORE INSERT ON files WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;
DROP TRIGGER files_update_guard;
CREATE TRIGGER files_update_guard BEFORE UPDATE ON files WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;
DROP TRIGGER files_delete_guard;
CREATE TRIGGER files_delete_guard BEFORE DELETE ON files WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;
DROP TRIGGER journal_insert_guard;
CREATE TRIGGER journal_insert_guard BEFORE INSERT ON journal WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;
DROP TRIGGER journal_update_guard;
CREATE TRIGGER journal_update_guard BEFORE UPDATE ON journal WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;
DROP TRIGGER journal_delete_guard;
CREATE TRIGGER journal_delete_guard BEFORE DELETE ON journal WHEN 0
BEGIN SELECT sagastore_server_owns_this_file(); END;
