"""What the commands `sagastore` and `sagastore-server` have in common.

Exit statuses, the output of errors, wrapping of text, and the classes of the argument parser.
"""
