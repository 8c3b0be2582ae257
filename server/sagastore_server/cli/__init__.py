"""Commands of `sagastore-server`, one module each."""
