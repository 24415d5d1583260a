"""A server that stands in for NDIF: it runs nnsight's remote requests in a process that cannot know odesteer_tl.

    python tests/loopback.py [--port 0] [--lenient]

prints {"port": …, "odesteer_tl": false} when it is ready and ends when its standard input closes. A request's model is
a local folder. Unless --lenient, it refuses what NDIF is known to refuse: pickles may name the modules in PICKLED, code
that came with a request may import those in IMPORTED, and no others. (NDIF also takes open, exec, compile, breakpoint
from such code; here only pickles may not name them.) Besides NDIF's own addresses there are POST /fault
{"kind": one of FAULTS}, which spoils the next request, and GET /last, which describes the latest one.
"""

import argparse
import base64
import builtins
import hashlib
import importlib.util
import io
import json
import os
import queue
import site
import sys
import threading
import traceback
import uuid
from contextlib import contextmanager, nullcontext, suppress
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HIDDEN = {"odesteer_tl", "tests", "benchmarks"}
IMPORTED = {"torch", "math", "einops", "numpy", "typing", "collections"}
PICKLED = IMPORTED | {"builtins", "time", "sympy", "nnterp", "urllib3", "pandas", "operator", "enum"}
PICKLED |= {"pickle", "cloudpickle", "copyreg", "nnsight"}
FAULTS = {"error", "drop", "close", "refuse", "drop_result"}
OWN = (sys.prefix, sys.base_prefix, site.getusersitepackages(), os.path.realpath(__file__))


class Missing:
    """Finds first, and says of this checkout's packages what Python says of a package that is not there.

    An editable install left a .pth file that `site` has read by now: it added the checkout to sys.path, or a finder of
    its own to the end of sys.meta_path. This one comes before either.
    """

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hide_sources(event, arguments):
    """The client's files lie on this machine too, and nnsight reads sources: it must get them from the request."""
    if event == "open" and str(arguments[0]).endswith(".py") and not str(arguments[0]).startswith(OWN):
        raise FileNotFoundError(f"{arguments[0]} is a file of the client's")


if __name__ == "__main__":  # before anything heavy is imported, and for good
    sys.meta_path.insert(0, Missing)
    sys.path.pop(0)  # this folder
    sys.addaudithook(hide_sources)
    os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
import zstandard  # noqa: E402
from nnsight import TransformersModel, ndif  # noqa: E402
from nnsight.intervention.serialization import CustomCloudUnpickler  # noqa: E402
from nnsight.schema.request import RequestModel  # noqa: E402
from nnsight.schema.response import ResponseModel, Status  # noqa: E402
from nnsight.tracing.globals import BLOCKS, SOURCES  # noqa: E402
from nnsight.tracing.tracer import _saves, dec, inc  # noqa: E402


class StrictUnpickler(CustomCloudUnpickler):
    def find_class(self, module: str, name: str):
        root = module.partition(".")[0]
        if root not in PICKLED or (root == "builtins" and name in {"open", "exec", "compile", "breakpoint"}):
            importlib.util.find_spec(root)  # raises for what is HIDDEN
            raise ImportError(f"Module {module} is not whitelisted ({name})")
        found = super().find_class(module, name)  # subimport: cloudpickle's way to a module that a shipped global holds
        return found if name != "subimport" else lambda held: self.find_class(held, "__name__") and found(held)


@contextmanager
def guarded_imports():
    """Code that came with a request imports from the list only; what it calls goes on importing what it likes."""
    real = builtins.__import__

    def guarded(name, globals=None, locals=None, fromlist=(), level=0):
        importer = sys._getframe(1).f_globals if globals is None else globals
        module = sys.modules.get(importer.get("__name__"))
        shipped = getattr(module, "__dict__", None) is not importer  # no module's own code, whatever name it bears
        by_c = isinstance(fromlist, list)  # PyImport_Import, which gives the globals of the Python code that called C
        if shipped and not by_c and name.partition(".")[0] not in IMPORTED:
            raise ImportError(f"Module {name} is not whitelisted")
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = guarded
    try:
        yield
    finally:
        builtins.__import__ = real


class Server(ThreadingHTTPServer):
    """The jobs, one at a time; the models they name, loaded at first use; and who waits for what."""

    def __init__(self, port: int, lenient: bool):
        super().__init__(("127.0.0.1", port), Handler)
        self.lenient = lenient
        self.models: dict[str, TransformersModel] = {}
        self.sessions: dict[str, queue.Queue] = {}  # session id: what its websocket shall send
        self.responses: dict[str, ResponseModel] = {}  # job id: its latest status
        self.last: dict = {"count": 0}
        self.fault: str | None = None
        self.working = threading.Lock()

    def execute(self, request: RequestModel, blob: bytes) -> dict:
        """Run a request's block as NDIF does, and return what it saved."""
        if (key := request.model_key) not in self.models:
            self.models[key] = TransformersModel._remoteable_from_model_key(key.partition(":")[2], dispatch=True)
        known = self.models[key]._remoteable_persistent_objects()
        SOURCES.clear(), BLOCKS.clear()  # kept by file and line, and the next client's file may read differently
        unpickler = CustomCloudUnpickler if self.lenient else StrictUnpickler
        with nullcontext() if self.lenient else guarded_imports():
            tracer = RequestModel.deserialize(blob, known, request.compress, unpickler)
            self.models[key]._remoteable_set_env(request.env)
            inc()
            try:
                tracer.execute(tracer.info.code)
                return {name: value for name, value in tracer.info.frame.f_locals.items() if id(value) in _saves()}
            finally:
                dec()

    def work(self, job: str, request: RequestModel, blob: bytes, fault: str | None) -> None:
        """Do a job, and tell whoever waits for it how it goes."""
        with self.working:
            self.tell(request, ResponseModel(id=job, status=Status.RUNNING))
            try:
                if fault == "error":
                    raise RuntimeError("a fault on demand")
                saves, file = self.execute(request, blob), io.BytesIO()
                torch.save({} if fault == "drop_result" else saves, file)
                data = zstandard.ZstdCompressor().compress(file.getvalue()) if request.compress else file.getvalue()
                end = ResponseModel(id=job, status=Status.COMPLETED, data=data)
            except BaseException:  # SystemExit too: whatever shipped code raises is for the client to see
                end = ResponseModel(id=job, status=Status.ERROR, description=traceback.format_exc())
            self.tell(request, end)

    def tell(self, request: RequestModel, message: ResponseModel) -> None:
        self.responses[message.id] = message
        self.sessions.get(request.session_id, queue.Queue()).put(message)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_):
        """Nothing: standard error is for what goes wrong."""

    def answer(self, body: str | bytes, code: int = 200) -> None:
        body = body.encode() if isinstance(body, str) else body
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        where, _, job = self.path[1:].partition("/")
        response = self.server.responses.get(job)
        if where == "subscribe":
            self.subscribe()
        elif where == "last":
            self.answer(json.dumps(self.server.last))
        elif where == "env":
            env = ndif.get_local_env()
            env["packages"].pop("odesteer_tl", None)  # a distribution is listed without being imported
            self.answer(json.dumps(env))
        elif where == "response" and response:
            url = f"http://127.0.0.1:{self.server.server_port}/result/{job}"
            self.answer(response.model_copy(update={"data": response.data and url}).model_dump_json())
        elif where == "result" and response and response.data:
            self.answer(response.data)
        else:
            self.answer('{"detail": "Not Found"}', 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/request":
            self.accept(body)
        elif self.path == "/fault" and (kind := json.loads(body)["kind"]) in FAULTS:
            self.server.fault = kind
            self.answer("{}")
        else:
            self.answer('{"detail": "Not Found"}', 404)

    def accept(self, body: bytes) -> None:
        form = BytesParser().parsebytes(b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body)
        parts = {p.get_param("name", header="content-disposition"): p.get_payload(decode=True) for p in form.walk()}
        request, blob = RequestModel.model_validate_json(parts["data"]), parts["blob"]
        version, count = self.headers["nnsight-version"], self.server.last["count"] + 1
        self.server.last = dict(count=count, bytes=len(blob), model_key=request.model_key, nnsight_version=version)
        fault, self.server.fault = self.server.fault, None
        job = uuid.uuid4().hex
        if fault == "refuse":
            self.answer(json.dumps({"detail": f"nnsight 0.7 required, got {version}"}), 400)
        else:
            self.answer(ResponseModel(id=job, status=Status.RECEIVED).model_dump_json())
        if fault not in ("refuse", "drop", "close"):
            threading.Thread(target=self.server.work, args=(job, request, blob, fault), daemon=True).start()
        else:  # without a websocket to end, the job is merely lost
            self.server.sessions.get(request.session_id, queue.Queue()).put(fault)

    def subscribe(self) -> None:
        """A websocket that sends the session's id, then its job's statuses, and ends after the last (RFC 6455)."""
        seed = self.headers["Sec-WebSocket-Key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(seed).digest())
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
        self.wfile.write(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        self.close_connection = True
        session = uuid.uuid4().hex
        messages = self.server.sessions[session] = queue.Queue()
        self.frame(1, json.dumps({"session_id": session}).encode())
        while isinstance(message := messages.get(), ResponseModel):  # else the name of a fault
            done = message.status == Status.COMPLETED
            self.frame(2 if done else 1, message.pickle() if done else message.model_dump_json().encode())
            if message.status in (Status.COMPLETED, Status.ERROR):
                break
        del self.server.sessions[session]
        if message != "drop":  # which ends without a word
            self.frame(8, (1012 if message == "close" else 1000).to_bytes(2, "big"))  # 1012: the service restarts

    def frame(self, opcode: int, payload: bytes) -> None:
        n = len(payload)
        width, mark = (0, n) if n < 126 else (2, 126) if n < 1 << 16 else (8, 127)
        self.wfile.write(bytes([0x80 | opcode, mark]) + n.to_bytes(8, "big")[8 - width :] + payload)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--lenient", action="store_true")
    server, ready = Server(**vars(parser.parse_args())), {"odesteer_tl": False}
    with suppress(ModuleNotFoundError):
        ready["odesteer_tl"] = importlib.util.find_spec("odesteer_tl") is not None
    print(json.dumps({"port": server.server_port, **ready}), flush=True)
    sys.stdout = sys.stderr  # nobody reads on, and what shipped code prints would fill the pipe
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.buffer.read()
    os._exit(0)
