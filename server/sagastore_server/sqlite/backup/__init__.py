"""Backup, restore and archive of a SQLite store."""
