"""What the rooms above agree on: who calls, what may be refused, and what is observed.

``rpc`` asks and reports; ``ops`` answers and records; neither knows the other.
"""
