#!/bin/bash
# ray[serve] 2.60.0: a streamed response is not paused while its client reads nothing; what it gives is kept in memory.
#
# uvicorn pauses an application that sends more than 64 KiB that the socket does not take, so a generator that streams
# goes as fast as its client reads. Behind Serve the same generator runs to its end: neither the replica nor the proxy
# waits, and the whole answer lies in the object store and in the memory of the proxy. A server that relies on being
# paused (to stop work for clients that have gone silent, or to bound memory) gets no sign of them.
#
# Seen: a client reads the headers of a stream of 256 MiB and then nothing. Under uvicorn alone the generator has given
# 4 MiB five seconds later; under Serve all 256 MiB.
# Way out: bound what an answer may be, or have the client say what it has read.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile "ray[serve]==2.60.0" "uvicorn==0.54.0" "starlette==1.10.0"
cat > "$folder/streams.py" <<'PROGRAM'
import asyncio, socket, sys, threading, time
import ray, uvicorn
from ray import serve
from starlette.responses import StreamingResponse

MIB, PARTS = 1 << 20, 256

class Streams:
    def __init__(self):
        self.given = 0

    async def parts(self):
        for _ in range(PARTS):
            yield bytes(MIB)
            self.given += 1
            await asyncio.sleep(0)

    async def __call__(self, request):
        if request.url.path == "/given":
            return StreamingResponse(iter([str(self.given).encode()]))
        return StreamingResponse(self.parts())

def ask(port, path):
    one = socket.create_connection(("127.0.0.1", port))
    one.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    return one

def given_after_five_seconds(port):
    silent = ask(port, "/")
    silent.recv(1024)
    time.sleep(5)
    with ask(port, "/given").makefile("rb") as answer:
        said = answer.read()
    silent.close()
    return int(said.rpartition(b"\r\n0\r\n")[0].rpartition(b"\r\n")[2])

def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]

streams, port = Streams(), free_port()

async def app(scope, receive, send):
    from starlette.requests import Request
    await (await streams(Request(scope, receive)))(scope, receive, send)

server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
threading.Thread(target=server.run, daemon=True).start()
while not server.started:
    time.sleep(0.05)
alone = given_after_five_seconds(port)
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
port = free_port()
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(serve.deployment(Streams).bind(), route_prefix="/")
served = given_after_five_seconds(port)
print(f"ray {ray.__version__}: MiB given to a client that reads nothing: {alone} under uvicorn, {served} under Serve")
sys.exit(not (alone < PARTS // 4 and served == PARTS))
PROGRAM
"$folder/venv/bin/python" "$folder/streams.py"
