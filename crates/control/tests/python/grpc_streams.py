"""gRPC of every kind: grpc_streams.py serve PORT | grpc_streams.py call ADDRESS AUTHORITY.

The client prints what came of each call, as JSON in one line.
"""

import json
import sys
import time
from concurrent import futures

import grpc


def trailers(context):
    context.set_trailing_metadata((("x-trailer", "end"), ("x-bytes-bin", b"\x00\xff")))


def unary(request, context):
    trailers(context)
    if request == b"fail":
        context.abort(grpc.StatusCode.NOT_FOUND, "nothing of \u00fc here")
    if request == b"slow":
        left = context.time_remaining()
        time.sleep(1.5)
        # To tens: what the way took does not matter.
        return b"late, had %d" % round(left, -1)
    return request


def download(request, context):
    for n in range(int(request)):
        yield b"%d" % n * 1000
    trailers(context)
    if request == b"7":
        context.abort(grpc.StatusCode.DATA_LOSS, "in the middle")


def upload(requests, context):
    size = sum(len(request) for request in requests)
    trailers(context)
    return b"%d" % size


def both(requests, context):
    context.send_initial_metadata((("x-first", "yes"),))
    for request in requests:
        if request == b"refuse":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")
        yield b"re: " + request
    trailers(context)


def serve(port):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Download": grpc.unary_stream_rpc_method_handler(download),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    }
    handler = grpc.method_handlers_generic_handler("test.Streams", methods)
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port("127.0.0.1:" + port)
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


def call(address, authority):
    options = (("grpc.default_authority", authority),)
    channel = grpc.insecure_channel(address, options=options)
    made = {}

    def end(of):
        metadata = dict(of.trailing_metadata() or ())
        kept = {k: v.hex() if isinstance(v, bytes) else v for k, v in metadata.items() if k in ("x-trailer", "x-bytes-bin")}
        return [of.code().name, of.details(), kept]

    unary = channel.unary_unary("/test.Streams/Unary")

    def one(name, request, **more):
        try:
            answer, of = unary.with_call(request, **more)
            made[name] = [answer[:20].decode(), len(answer), *end(of)]
        except grpc.RpcError as error:
            made[name] = [None, 0, *end(error)]

    one("unary", b"hello")
    one("empty", b"")
    one("large", b"x" * 3_000_000, timeout=20)
    one("fail", b"fail")
    one("deadline", b"slow", timeout=0.3)
    one("in time", b"slow", timeout=20)

    download = channel.unary_stream("/test.Streams/Download")

    def many(name, request):
        of, got = download(request), []
        try:
            for message in of:
                got.append(len(message))
        except grpc.RpcError:
            pass
        made[name] = [got, *end(of)]

    many("download", b"50")
    many("none", b"0")
    many("broken", b"7")

    upload = channel.stream_unary("/test.Streams/Upload")
    answer, of = upload.with_call(iter([b"y" * 100_000] * 40), timeout=20)
    made["upload"] = [answer.decode(), *end(of)]

    # One message is answered before the next is sent.
    both = channel.stream_stream("/test.Streams/Both")

    def talk(name, last):
        import queue

        waiting = queue.Queue()
        of, got = both(iter(waiting.get, None)), []
        first = dict(of.initial_metadata()).get("x-first")
        try:
            for n in range(5):
                waiting.put(b"%d" % n)
                got.append(next(of).decode())
            waiting.put(last)
            if last is not None:
                got.append(next(of).decode())
            else:
                got.extend(message.decode() for message in of)
        except (grpc.RpcError, StopIteration):
            waiting.put(None)
        made[name] = [first, got, *end(of)]

    talk("both", None)
    talk("refused", b"refuse")

    of = download(b"100000")
    next(of)
    of.cancel()
    made["cancelled"] = of.code().name
    one("after that", b"hello")
    missing = channel.unary_unary("/test.Streams/Missing")
    try:
        missing(b"")
    except grpc.RpcError as error:
        made["missing"] = error.code().name
    print(json.dumps(made), flush=True)


if sys.argv[1] == "serve":
    serve(sys.argv[2])
else:
    call(sys.argv[2], sys.argv[3])
