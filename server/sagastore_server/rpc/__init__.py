"""The gRPC face of the service: the only room that knows gRPC and protobuf.

Requests are checked and turned into the storage contract's values at the edge,
answers and errors are turned back; nothing behind this room sees a protobuf.
"""

import os

# gRPC's core writes lines of its own to standard error, where ours are JSON; what
# it has to say while starting (the port is taken) we say better. It reads this when
# it is loaded, which is after this line.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
