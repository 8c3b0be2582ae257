"""Client library of SagaStore."""
__version__ = "0.1.0"
