"""The live move from one store to another, made of contracts only.

What is here knows a source and a target (``storage.replication``) and what may be asked
of a migration (``storage.migration``), and no database.
"""
