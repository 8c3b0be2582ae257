"""Adapters that let applications and frameworks store their messages in SagaStore.

Each module is one adapter and is imported by its full name. An adapter uses only the
public names of `sagastore`, and `sagastore` imports no adapter.
"""
