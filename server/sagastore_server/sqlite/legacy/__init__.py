"""Import of a legacy `memory.db` into a SQLite store."""
