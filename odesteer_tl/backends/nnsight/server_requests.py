"""Requests as nnsight's `RemoteBackend` makes them, within limits.

nnsight reads all that a server sends, however long it is, takes whichever result comes, and goes with the key wherever
the websocket is sent on to. Here there is a limit of bytes and of time for all that is read, a result is that of the
request that was made, and nothing is followed. Its protocol is kept: the headers, the session, the order of the steps.
"""

import json
import sys
import time
from typing import Any

import httpx
import websocket
from nnsight.intervention.backends import remote
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.schema.response import ResponseModel
from tqdm import tqdm

from odesteer_tl.backends.nnsight.deadlines import Deadline, MessageClock
from odesteer_tl.backends.nnsight.plain_data import NotPlain

CONNECT_TIMEOUT = 60.0
"""Seconds within which a server has to accept the connection. The queue and the work itself have no limit; what the
server sends has that of `deadlines`."""

WORDS = 2**25
"""Bytes that a server may use beside its results: a traceback, a session, the reason of a refusal."""

_REFRESH = 0.1  # seconds after which the line that says how the work goes is drawn anew


class TooMuch(Exception):
    """A server sent more bytes than there can be."""

    def __init__(self, most: int) -> None:
        super().__init__(f"more than {most:,} bytes, the most that the reply can have")


class BoundedBackend(RemoteBackend):
    """`max_bytes`: the largest size of a result."""

    max_bytes: int

    def request(self, request: Any, tracer: Any) -> Any:
        """The result of a request that the server has finished. Raises TooMuch; TooSlow; NotPlain for none, or that
        of another request; RemoteError where the server says that it failed; and as httpx and websocket-client do."""
        blob = self._serialize(tracer)  # what cannot be sent is told before anything is asked
        key = {"ndif-api-key": self.api_key} if self.api_key else None
        with Deadline(WORDS) as deadline:
            connection: Any = websocket.create_connection(
                f"{self.ws_host}/subscribe",
                timeout=websocket.getdefaulttimeout() or CONNECT_TIMEOUT,
                header=key,
                redirect_limit=0,
                class_=_Bounded,
                most=self.max_bytes + WORDS,
                deadline=deadline,
            )
        try:
            session = json.loads(connection.recv())["session_id"]
            if not isinstance(session, str):
                raise NotPlain("no session")
            request.session_id = session
            received = self._post(request, blob)
            self.note(received)
            if self.display.enabled:
                connection.settimeout(_REFRESH)
            while True:
                try:
                    message = connection.recv()
                except websocket.WebSocketTimeoutException:
                    connection.clock.tick()
                    self.display.refresh()
                    continue
                response = self.parse(message)
                if self.note(response):
                    if response.id != received.id:
                        raise NotPlain("the answer to another request")
                    return self.download_result(response.data)
        finally:
            connection.close(timeout=0)  # it does not wait for the server's goodbye

    def download_result(self, url: Any) -> Any:
        """The result that the last status holds, or the address of. None where there is none."""
        if isinstance(url, (bytes, bytearray)):
            return self.finalize(bytes(url))
        if not url:
            return None
        if not isinstance(url, str):
            raise NotPlain("neither a result nor its address")
        if self.host.startswith("https:") and not url.lower().startswith("https:"):
            raise NotPlain("the address of a result that others on the way could write (no https)")
        response, content = self._read("GET", url, self.max_bytes)
        if not response.is_success:
            raise RemoteError(f"The result is not to be had: {response.status_code} {response.reason_phrase}")
        return self.finalize(content)

    def _post(self, request: Any, blob: bytes) -> ResponseModel:
        headers = {
            "ndif-timestamp": repr(time.time()),
            "nnsight-version": remote._NNSIGHT_VERSION,
            "python-version": sys.version,
        }
        if self.api_key:
            headers["ndif-api-key"] = self.api_key
        files = {"blob": ("request", blob, "application/octet-stream")}
        response, body = self._read(
            "POST", f"{self.host}/request", WORDS, data={"data": request.metadata()}, files=files, headers=headers
        )
        if not response.is_success:
            why = _detail(body) or f"{response.status_code} {response.reason_phrase}"
            raise RemoteError(f"Failed to send request: {why}")
        return ResponseModel.model_validate_json(body)

    def _read(self, method: str, url: str, most: int, **what: Any) -> tuple[httpx.Response, bytes]:
        """An answer and its bytes as they came: unpacked, a few could be any number."""
        what["headers"] = {**what.get("headers", {}), "Accept-Encoding": "identity"}
        found, timeout = bytearray(), httpx.Timeout(remote._CONNECT_TIMEOUT, read=remote._READ_TIMEOUT)
        hidden = method == "POST" or not self.display.enabled
        with Deadline(most) as deadline, httpx.Client(timeout=timeout) as client:
            with client.stream(method, url, extensions={"trace": deadline.opened}, **what) as response:
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise NotPlain("an answer in an encoding that was not asked for")
                with tqdm(unit="B", unit_scale=True, desc="Downloading the result", disable=hidden) as bar:
                    for chunk in response.iter_raw():
                        deadline.check()
                        found += chunk
                        bar.update(len(chunk))
                        if len(found) > most:
                            raise TooMuch(most)
        return response, bytes(found)


class _Bounded(websocket.WebSocket):
    """A websocket of which no message, with the controls before it, has more than `most` bytes, or takes longer than
    these may. At `deadline` it is shut down if it is not open yet."""

    def __init__(self, most: int, deadline: Deadline, **options: Any) -> None:
        super().__init__(**options)
        self.most, self.read, self.clock = most, 0, MessageClock(most)
        deadline.holds(self)

    def recv(self) -> str | bytes:
        message = super().recv()
        self.read = 0  # not where it timed out: the beginning of a message is kept
        return message

    def recv_frame(self) -> Any:
        frame = super().recv_frame()
        self.clock.frame(frame.opcode, bool(frame.fin))
        return frame

    def _recv(self, bufsize: int) -> bytes:
        data = super()._recv(bufsize)
        self.read += len(data)
        if self.read > self.most:
            raise TooMuch(self.most)
        self.clock.tick(came=bool(data))
        return data


def _detail(body: bytes) -> str:
    """Why a server refused: FastAPI's "detail", or all that it says."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace")
    return str(said.get("detail") or "") if isinstance(said, dict) else str(said)
