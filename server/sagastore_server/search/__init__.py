"""Text search, as far as no database is needed: shared by all backends.

Text becomes terms here, queries become trees, matches are ranked and shown here.
A backend only finds the messages that have the terms; see docs/explanation/search.md.
"""
