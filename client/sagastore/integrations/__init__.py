"""Adapters that let applications and frameworks store their messages in SagaStore.

Each module is an adapter of its own and is imported by its full name. An adapter uses
only the public names of `sagastore`, and `sagastore` imports no adapter.
"""
