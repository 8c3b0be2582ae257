"""The gRPC face of the service: the only room that knows gRPC and protobuf.

Requests are checked and turned into the storage contract's values at the edge,
answers and errors are turned back; nothing behind this room sees a protobuf.
"""
