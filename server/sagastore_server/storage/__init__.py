"""The storage contract: what every backend promises, and the words it is said in.

This room imports the standard library only, and no other room of the server.
"""
