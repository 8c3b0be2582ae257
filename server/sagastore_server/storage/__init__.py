"""The storage contract: interfaces, data model and errors that all backends share.

This package imports the standard library only, and no other package of the server.
"""
