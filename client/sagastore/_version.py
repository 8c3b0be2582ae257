"""The version, where everything that needs it can import it cheaply."""

__version__ = "0.1.0"
