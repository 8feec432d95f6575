"""Calls a server again and again: grpc_client.py TARGET CALLS.

Prints one JSON object per round of CALLS calls: how many each name answered; a failed call counts
for its status code. The metadata of the calls is the JSON object on the last line of the file in
the environment variable METADATA, if it is set.
"""

import json
import os
import sys
import time

import grpc

target, calls = sys.argv[1], int(sys.argv[2])
# Behind a gateway the authority says which service is meant.
authority = () if target.startswith("xds:") else (("grpc.default_authority", "echo.test"),)
channel = grpc.insecure_channel(target, options=authority)
whoami = channel.unary_unary("/test.Echo/WhoAmI")


def metadata():
    path = os.environ.get("METADATA")
    if not path or not os.path.exists(path):
        return ()
    with open(path, encoding="utf-8") as file:
        return tuple(json.load(file).items())


while True:
    counts = {}
    sent = metadata()
    for _ in range(calls):
        try:
            name = whoami(b"", timeout=5, metadata=sent).decode()
        except grpc.RpcError as error:
            name = error.code().name + ": " + error.details()
        counts[name] = counts.get(name, 0) + 1
    print(json.dumps(counts), flush=True)
    time.sleep(0.02)
