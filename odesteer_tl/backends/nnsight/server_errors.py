"""Requests to a server: failures become ConnectionError or RuntimeError, and replies are read as data, never run.

This is nnsight's `RemoteBackend` with four changes: a result is not written into the caller's variables, is not
unpickled, and may not be larger than was asked for; and the server's text is shown without control characters or keys.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from threading import Lock
from typing import Any

import httpx
import websocket
from huggingface_hub.errors import HFValidationError
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.schema.response import ResponseModel, Status
from zstandard import ZstdDecompressor, ZstdError

from odesteer_tl.backends.nnsight.addresses import address_of
from odesteer_tl.backends.nnsight.plain_data import NotPlain, plain
from odesteer_tl.backends.nnsight.server_text import MAX_CHARS, visible

CONNECT_TIMEOUT = 60.0
"""Seconds within which a server has to accept the connection. The queue and the work itself have no limit."""

_LOCK, _REQUESTS = Lock(), list[float | None]()
"""The timeout setting before the first request, then an entry for each thread with an open request."""

_LOST_CONNECTION = (websocket.WebSocketException, httpx.TransportError, OSError)
_CUT_OFF = (EOFError, ZstdError)
"""Raised for a status or a result that was cut off; a restarting server sends an empty status."""


class ServerRequest(RemoteBackend):
    """One request, whose result is read with `named`.

    Raises RuntimeError if the server failed or refused, or its reply is no nnsight reply; ConnectionError if it was not
    reached, does not answer, or the connection was lost. An error while the request is serialized is raised unchanged,
    before anything is sent.
    """

    def __init__(self, model: Any, remote: bool | str, max_bytes: int) -> None:
        """`max_bytes`: the largest size of the result. Raises ValueError for a model that a server cannot load by name,
        and as `address_of` does."""
        self.address = address_of(remote)
        self.max_bytes, self.result, self._local_error = max_bytes, None, None
        try:
            key, environment = model.to_model_key(), model._remoteable_get_env()
        except (HFValidationError, AttributeError) as error:
            raise ValueError(
                "A server loads a model by its name on the Hugging Face Hub, and this one is from a folder or from "
                'memory: load it as nnsight.TransformersModel("owner/name"), or leave out remote=.'
            ) from error
        except (httpx.HTTPError, OSError) as error:
            raise ConnectionError(
                f"The model's name could not be looked up on the Hugging Face Hub: {error}. Try again, or check the "
                "network."
            ) from error
        super().__init__(key, host=self.address.url.rstrip("/"), env=environment)

    def __call__(self, tracer: Any = None) -> None:
        failure = None
        try:
            with _with_timeout():
                super().__call__(tracer)
        except Exception as error:
            if error is self._local_error:
                raise
            failure = self._as_error(error)
        if failure is not None:  # raised outside the handler: its context would hold the server's text and the key
            raise failure

    def named(self, *names: str) -> list[Any]:
        """The saved values of these names. Raises RuntimeError if one is missing."""
        saved = self.result if isinstance(self.result, dict) else {}
        for name in names:
            if name not in saved:
                raise self.refused(f"no {name}")
        return [saved[name] for name in names]

    def refused(self, what: str) -> RuntimeError:
        """The error for a reply that is not what was asked."""
        return RuntimeError(f"The server at {self.address.shown} says that it is done, and sent back {what}.")

    def request(self, request: Any, tracer: Any) -> None:
        """As nnsight's, but the result stays here: nnsight would write all its values into the caller's variables."""
        self.result = super().request(request, tracer)

    def note(self, response: ResponseModel) -> bool:
        """As nnsight's, which prints the server's status, but with cleaned text."""
        is_error = response.status == Status.ERROR  # its text is cut later, in the error
        max_chars = len(response.description) if is_error else MAX_CHARS
        shown = {"id": visible(response.id, self._secrets())}
        shown["description"] = visible(response.description, self._secrets(), max_chars)
        return super().note(response.model_copy(update=shown))

    @staticmethod
    def parse(message: str | bytes) -> ResponseModel:
        """As nnsight's, without unpickling."""
        if not message:
            raise EOFError("an empty status")
        if isinstance(message, str):
            return ResponseModel.model_validate_json(message)
        return ResponseModel.model_validate(plain(bytes(message)))

    def finalize(self, content: bytes) -> Any:
        """As nnsight's, without unpickling, and with the limit of size."""
        if self.compress:
            content = ZstdDecompressor().stream_reader(content).read(self.max_bytes + 1)
        if len(content) > self.max_bytes:
            raise NotPlain(f"more than {self.max_bytes:,} bytes, the most that the reply can have")
        return plain(content)

    def _serialize(self, tracer: Any) -> bytes:
        try:
            return super()._serialize(tracer)
        except Exception as error:
            self._local_error = error
            raise

    def _secrets(self) -> tuple[str, ...]:
        return (self.api_key, *self.address.secrets)

    def _as_error(self, error: Exception) -> Exception:
        address, cause = self.address.shown, error
        if isinstance(error, RemoteError) and isinstance(error.__cause__, httpx.TransportError):
            cause = error.__cause__
        message = visible(str(cause), self._secrets()).strip()
        if isinstance(cause, RemoteError):
            traceback, _, reason = (message or "it does not say why").rpartition("\n")
            return RuntimeError(
                f"The server at {address} could not run the request, and nothing came back: {reason}"
                + (f"\n\nThe server's traceback:\n{traceback}" if traceback else "")
            )
        if isinstance(cause, _CUT_OFF) or (isinstance(cause, JSONDecodeError) and not cause.doc):
            return ConnectionError(
                f"The connection to {address} ended before the reply was complete, and nothing came back. Try again."
            )
        if isinstance(cause, _LOST_CONNECTION):
            return ConnectionError(
                f"The connection to {address} failed, and nothing came back: {type(cause).__name__}: "
                f"{message.rstrip('.')}. Ask again, or check the address (remote=URL or NDIF_HOST) and the key "
                "(NDIF_API_KEY)."
            )
        if isinstance(cause, NotPlain):
            return self.refused(f"{message}; nothing of it is used")
        return RuntimeError(
            f"The server at {address} did not answer as nnsight's servers do, and nothing came back: "
            f"{type(cause).__name__}: {message}"
        )


def server_request(model: Any, remote: bool | str, max_bytes: int) -> ServerRequest | None:
    """A request to the server that `remote` names, for a reply of at most `max_bytes` bytes; None without `remote`, and
    for nnsight's "local"."""
    return None if not remote or remote == "local" else ServerRequest(model, remote, max_bytes)


@contextmanager
def _with_timeout() -> Iterator[None]:
    """Limit the time of the connection's handshake, for which nnsight would wait for ever. The setting is global to the
    process: the first thread with a request makes it, the last one restores it."""
    with _LOCK:
        if not _REQUESTS:
            _REQUESTS.append(websocket.getdefaulttimeout())
            websocket.setdefaulttimeout(_REQUESTS[0] or CONNECT_TIMEOUT)
        _REQUESTS.append(None)
    try:
        yield
    finally:
        with _LOCK:
            _REQUESTS.pop()
            if len(_REQUESTS) == 1:
                websocket.setdefaulttimeout(_REQUESTS.pop())
