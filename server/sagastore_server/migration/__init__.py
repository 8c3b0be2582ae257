"""Live migration from one store to another, without downtime.

The package knows the stores by their contracts (``storage.replication``) and no database. It
implements ``storage.migration.MigrationControl``.
"""
