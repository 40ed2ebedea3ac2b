"""A gRPC server or client that counts every call by method and status.

Messages are bytes, so that nothing but grpcio is needed. Keeps step as the workloads do: READY, a line
on standard input, DONE with the counts. With --now the client does not wait.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import sys
import threading

import grpc

SERVICE = "perf.agent.Orders"
# Calls of each kind that a client makes at a time, and in how many threads.
THREADS = 8
ITEMS = 20


class Counts:
    def __init__(self):
        self.lock = threading.Lock()
        self.calls = collections.Counter()

    def add(self, method, code):
        with self.lock:
            self.calls[f"/{SERVICE}/{method} {code.value[0]}"] += 1

    def json(self):
        with self.lock:
            return json.dumps(self.calls)


def step(counts, work):
    print("READY", os.getpid(), flush=True)
    sys.stdin.readline()
    work()
    print("DONE", counts.json(), flush=True)


def credentials(directory):
    def read(name):
        with open(os.path.join(directory, name), "rb") as file:
            return file.read()

    return read("server.key"), read("server.crt")


def serve(arguments, counts):
    def get(request, context):
        counts.add("Get", grpc.StatusCode.OK)
        return request * 2

    def find(request, context):
        counts.add("Find", grpc.StatusCode.NOT_FOUND)
        context.abort(grpc.StatusCode.NOT_FOUND, "no such order")

    def watch(request, context):
        counts.add("Watch", grpc.StatusCode.OK)
        for i in range(ITEMS):
            yield request + bytes(i)

    def watch_and_fail(request, context):
        yield request
        counts.add("Break", grpc.StatusCode.INTERNAL)
        context.abort(grpc.StatusCode.INTERNAL, "broken in the middle")

    def add(requests, context):
        counts.add("Add", grpc.StatusCode.OK)
        return b"".join(requests)

    handlers = {
        "Get": grpc.unary_unary_rpc_method_handler(get),
        "Find": grpc.unary_unary_rpc_method_handler(find),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
        "Break": grpc.unary_stream_rpc_method_handler(watch_and_fail),
        "Add": grpc.stream_unary_rpc_method_handler(add),
    }
    pool = concurrent.futures.ThreadPoolExecutor(THREADS)
    server = grpc.server(pool)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    address = f"127.0.0.1:{arguments.port}"
    if arguments.tls:
        pair = credentials(arguments.tls)
        server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    else:
        server.add_insecure_port(address)
    server.start()
    step(counts, lambda: server.stop(grace=10).wait())


def ask(channel, counts, calls):
    def call(kind, method, message):
        make = getattr(channel, kind)(f"/{SERVICE}/{method}")
        try:
            answer = make(message)
            if kind == "unary_stream":
                list(answer)
            code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            code = error.code()
        counts.add(method, code)

    def some(_):
        for _ in range(calls):
            call("unary_unary", "Get", b"order")
            call("unary_unary", "Find", b"missing")
            call("unary_stream", "Watch", b"orders")
            call("unary_stream", "Break", b"orders")
            call("stream_unary", "Add", iter([b"a", b"b" * 500, b"c"]))

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(some, range(THREADS)))


def client(arguments, counts):
    address = f"localhost:{arguments.port}"
    if arguments.tls:
        _, certificate = credentials(arguments.tls)
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate))
    else:
        channel = grpc.insecure_channel(address)
    if arguments.now:
        ask(channel, counts, arguments.calls)
        print("DONE", counts.json(), flush=True)
    else:
        # The connection is old, and both header tables are filled, when the counted calls begin.
        ask(channel, Counts(), 2)
        step(counts, lambda: ask(channel, counts, arguments.calls))
        sys.stdin.readline()
    channel.close()


parser = argparse.ArgumentParser()
parser.add_argument("role", choices=["serve", "ask"])
parser.add_argument("--port", required=True)
parser.add_argument("--tls", help="directory of server.key and server.crt")
parser.add_argument("--now", action="store_true")
parser.add_argument("--calls", type=int, default=100, help="of each kind by each thread")
arguments = parser.parse_args()
(serve if arguments.role == "serve" else client)(arguments, Counts())
