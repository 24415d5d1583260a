"""A server beside the tests that sends back whatever it is told: it runs nothing, and believes nobody.

with hostile(reply) as server:
    server.reply = Reply(saves=...)
    ot.collect(..., remote=server.url)
"""

import base64
import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
import zstandard
from asked_once import patches
from nnsight import CONFIG
from nnsight.schema.response import ResponseModel, Status

KEY = "the-marked-key-7c1e"


@dataclass
class Reply:
    """What is sent at each step; None is what an honest server sends there."""

    saves: Any = None
    handshake: bytes | None = None  # raw bytes in place of the HTTP answer to /subscribe
    session: bytes | None = None  # the first message
    posted: tuple[int, bytes, dict[str, str]] | None = None  # status, body and headers of the answer to /request
    before: list[tuple[int, bytes]] = field(default_factory=list)  # frames before the last: opcode, payload
    result: bytes | None = None  # the result in place of that of `saves`
    last: tuple[int, bytes] | None = None  # the last frame
    headers: dict[str, str] = field(default_factory=dict)  # of the answer to /result
    by_url: bool = False  # whether the last frame says where the result is to be had
    cut: int | None = None  # bytes of the last frame's payload after which the connection ends
    drips: str = ""  # the step that is sent a byte at a time


def blob(saves: Any, protocol: int = 2) -> bytes:
    """A result as servers send it."""
    file = io.BytesIO()
    torch.save(saves, file, pickle_protocol=protocol)
    return zstandard.ZstdCompressor().compress(file.getvalue())


def status(kind: Status, said: str = "") -> bytes:
    return ResponseModel(id="job", status=kind, description=said).model_dump_json().encode()


def completed(data: Any) -> bytes:
    return ResponseModel(id="job", status=Status.COMPLETED, data=data).pickle()


class Server(ThreadingHTTPServer):
    """The reply to send, and the headers of every request that came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.seen = Reply(), list[dict[str, str]]()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.posted = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients go away from what they are sent."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def put(self, step: str, data: bytes) -> None:
        """All at once, or a byte at a time, which keeps a client of 10 bytes waiting for half a second."""
        for part in [data[i : i + 1] for i in range(len(data))] if self.server.reply.drips == step else [data]:
            self.wfile.write(part)
            time.sleep(0.05 * (part is not data))

    def answer(self, step: str, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body)), "Connection": "close"} | (headers or {})).items():
            self.send_header(name, value)
        head = b"".join(getattr(self, "_headers_buffer", []))
        self._headers_buffer = []
        self.put(step + " headers", head + b"\r\n")
        self.put(step, body)

    def do_GET(self) -> None:
        self.server.seen.append({"path": self.path} | {name.lower(): value for name, value in self.headers.items()})
        reply = self.server.reply
        if self.path == "/result":
            self.answer("result", 200, self.data(), reply.headers)
        elif reply.handshake is not None:
            self.wfile.write(reply.handshake)
            self.close_connection = True
        else:
            self.subscribe(reply)

    def do_POST(self) -> None:
        self.server.seen.append({"path": self.path} | {name.lower(): value for name, value in self.headers.items()})
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer("posted", *(self.server.reply.posted or (200, status(Status.RECEIVED))))
        self.server.posted.set()

    def data(self) -> bytes:
        reply = self.server.reply
        return blob(reply.saves) if reply.result is None else reply.result

    def subscribe(self, reply: Reply) -> None:
        key = self.headers["Sec-WebSocket-Key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        head += b"Date: " + formatdate(usegmt=True).encode() + b"\r\nSec-WebSocket-Accept: "
        self.put("handshake", head + base64.b64encode(hashlib.sha1(key).digest()) + b"\r\n\r\n")
        self.close_connection = True
        self.server.posted.clear()
        session = json.dumps({"session_id": "s"}).encode() if reply.session is None else reply.session
        self.frame(1, session, step="session")
        if not self.server.posted.wait(5 if reply.session is None else 0.2):
            return self.frame(8, (1000).to_bytes(2, "big"))  # else the client waits for it
        for opcode, payload in reply.before:
            self.frame(opcode, payload, step="before")
        said = ResponseModel(id="job", status=Status.COMPLETED, data=f"{self.server.url}/result")
        honest = (1, said.model_dump_json().encode()) if reply.by_url else (2, completed(self.data()))
        self.frame(*(reply.last or honest), cut=reply.cut, step="last")
        if reply.cut is None:
            self.frame(8, (1000).to_bytes(2, "big"))

    def frame(self, opcode: int, payload: bytes, cut: int | None = None, step: str = "") -> None:
        n = len(payload)
        width, mark = (0, n) if n < 126 else (2, 126) if n < 1 << 16 else (8, 127)
        self.put(step, bytes([0x80 | opcode, mark]) + n.to_bytes(8, "big")[8 - width :] + payload[:cut])


@contextmanager
def hostile() -> Iterator[Server]:
    """A running server, and nnsight set to show nothing and to hold the key `KEY`."""
    server, before = Server(), (CONFIG.API.APIKEY, CONFIG.APP.REMOTE_LOGGING)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    CONFIG.API.APIKEY, CONFIG.APP.REMOTE_LOGGING = KEY, False
    try:
        with ExitStack() as once:
            for patch in patches():
                once.enter_context(patch)
            yield server
    finally:
        CONFIG.API.APIKEY, CONFIG.APP.REMOTE_LOGGING = before
        server.shutdown()
        server.server_close()
