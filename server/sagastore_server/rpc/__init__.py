"""gRPC server: the only package that imports gRPC and protobuf.

It validates requests and converts them to values of the storage contract, and converts results
and errors back. No other package sees a protobuf message.
"""

import os

# gRPC's core writes plain lines to standard error, where the log is JSON. Its errors at startup,
# such as a port in use, are reported by `RpcServer.start`. gRPC reads the variable when it is
# imported, which is after this line.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
