"""Requests to a server: failures become ConnectionError or RuntimeError, and replies are read as data, never run.

This is nnsight's `RemoteBackend`, within the limits of `server_requests`, with three changes: a result is not written
into the caller's variables and not unpickled, and the server's text is shown without control characters or keys.
"""

from json import JSONDecodeError
from typing import Any

import httpx
import websocket
from huggingface_hub.errors import HFValidationError
from nnsight.intervention.backends.remote import RemoteError
from nnsight.schema.response import ResponseModel, Status
from zstandard import ZstdDecompressor, ZstdError

from odesteer_tl.backends.nnsight.addresses import address_of
from odesteer_tl.backends.nnsight.deadlines import TooSlow
from odesteer_tl.backends.nnsight.plain_data import NotPlain, plain
from odesteer_tl.backends.nnsight.server_requests import BoundedBackend, TooMuch
from odesteer_tl.backends.nnsight.server_text import MAX_CHARS, visible

_LOST_CONNECTION = (websocket.WebSocketException, httpx.TransportError, OSError)
_CUT_OFF = (EOFError, ZstdError)
"""Raised for a status or a result that was cut off; a restarting server sends an empty status."""


class ServerRequest(BoundedBackend):
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
        super().__init__(key, host=self.address.rstrip("/"), env=environment)

    def __call__(self, tracer: Any = None) -> None:
        failure = None
        try:
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
        return RuntimeError(f"The server at {self.address} says that it is done, and sent back {what}.")

    def request(self, request: Any, tracer: Any) -> None:
        """As nnsight's, but the result stays here: nnsight would write all its values into the caller's variables."""
        self.result = super().request(request, tracer)

    def note(self, response: ResponseModel) -> bool:
        """As nnsight's, which prints the server's status, but with cleaned text."""
        is_error = response.status == Status.ERROR  # its text is cut later, in the error
        max_chars = len(response.description) if is_error else MAX_CHARS
        shown = {"id": visible(response.id, [self.api_key])}
        shown["description"] = visible(response.description, [self.api_key], max_chars)
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
            raise TooMuch(self.max_bytes)
        return plain(content)

    def _serialize(self, tracer: Any) -> bytes:
        try:
            return super()._serialize(tracer)
        except Exception as error:
            self._local_error = error
            raise

    def _as_error(self, error: Exception) -> Exception:
        address = self.address
        message = visible(str(error), [self.api_key]).strip()
        if isinstance(error, RemoteError):
            traceback, _, reason = (message or "it does not say why").rpartition("\n")
            return RuntimeError(
                f"The server at {address} could not run the request, and nothing came back: {reason}"
                + (f"\n\nThe server's traceback:\n{traceback}" if traceback else "")
            )
        if isinstance(error, _CUT_OFF) or (isinstance(error, JSONDecodeError) and not error.doc):
            return ConnectionError(
                f"The connection to {address} ended before the reply was complete, and nothing came back. Try again."
            )
        if isinstance(error, _LOST_CONNECTION):
            return ConnectionError(
                f"The connection to {address} failed, and nothing came back: {type(error).__name__}: "
                f"{message.rstrip('.')}. Ask again, or check the address (remote=URL or NDIF_HOST) and the key "
                "(NDIF_API_KEY)."
            )
        if isinstance(error, TooSlow):
            return ConnectionError(
                f"The server at {address} was given up, and nothing came back: {message}. Ask again, for less at once, "
                "or ask another server."
            )
        if isinstance(error, NotPlain):
            return self.refused(f"{message}; nothing of it is used")
        if isinstance(error, TooMuch):
            return RuntimeError(f"The server at {address} sent {message}; nothing of it is used.")
        return RuntimeError(
            f"The server at {address} did not answer as nnsight's servers do, and nothing came back: "
            f"{type(error).__name__}: {message}"
        )


def server_request(model: Any, remote: bool | str, max_bytes: int) -> ServerRequest | None:
    """A request to the server that `remote` names, for a reply of at most `max_bytes` bytes; None without `remote`, and
    for nnsight's "local"."""
    return None if not remote or remote == "local" else ServerRequest(model, remote, max_bytes)
