"""Interfaces between the rooms: access control, TLS material, instruments, tracing, call context.

``rpc`` calls them; ``security`` and ``telemetry`` implement them. Neither side imports the other.
"""
