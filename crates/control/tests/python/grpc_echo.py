"""A gRPC server that tells its name: grpc_echo.py PORT NAME."""

import sys
from concurrent import futures

import grpc

port, name = sys.argv[1], sys.argv[2].encode()


def whoami(request, context):
    headers = dict(context.invocation_metadata())
    if headers.get("fail-once") and headers.get("grpc-previous-rpc-attempts") is None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "the first attempt fails")
    return name


server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
methods = {"WhoAmI": grpc.unary_unary_rpc_method_handler(whoami)}
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", methods),))
server.add_insecure_port("127.0.0.1:" + port)
server.start()
print("serving", flush=True)
server.wait_for_termination()
