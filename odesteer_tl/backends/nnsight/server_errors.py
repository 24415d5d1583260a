"""Requests to a server: failures become ConnectionError or RuntimeError, and replies are read as data, never run.

nnsight's own way is taken, within the limits of `server_requests`, but for two things: a result is not pushed into
anybody's frame and not unpickled; and what a server says is shown without controls or keys.
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
from odesteer_tl.backends.nnsight.plain_data import NotPlain, plain
from odesteer_tl.backends.nnsight.server_requests import BoundedBackend, TooMuch
from odesteer_tl.backends.nnsight.server_text import MOST, visible

_LOST = (websocket.WebSocketException, httpx.TransportError, OSError)
_CUT = (EOFError, ZstdError)
"""What is raised where a status or a result was cut off; a restarting server sends an empty status."""


class Asking(BoundedBackend):
    """One request, whose result is read with `named`.

    Raises RuntimeError where the server failed or refused, or its reply is none; ConnectionError where it was not
    reached, does not answer, or the connection was lost. What cannot be sent raises what it raises, before it is sent.
    """

    def __init__(self, model: Any, remote: bool | str, most: int) -> None:
        """`most`: bytes that the result may have. Raises ValueError for a model that has no name for a server, and as
        `address_of` does."""
        self.address = address_of(remote)
        self.most, self.result, self._own = most, None, None
        try:
            key, environment = model.to_model_key(), model._remoteable_get_env()
        except (HFValidationError, AttributeError) as error:
            raise ValueError(
                "A server knows a model by its name on the Hugging Face Hub, and this one is from a folder or from "
                'memory: load it as nnsight.TransformersModel("owner/name"), or leave out remote=.'
            ) from error
        except (httpx.HTTPError, OSError) as error:
            raise ConnectionError(f"The Hugging Face Hub was not asked for the model's name: {error}") from error
        super().__init__(key, host=self.address.url.rstrip("/"), env=environment)

    def __call__(self, tracer: Any = None) -> None:
        failure = None
        try:
            super().__call__(tracer)
        except Exception as error:
            if error is self._own:
                raise
            failure = self._told(error)
        if failure is not None:  # not from within the handler: its context would hold the server's words, and the key
            raise failure

    def named(self, *names: str) -> list[Any]:
        """What came back under these names. Raises RuntimeError where one is missing."""
        found = self.result if isinstance(self.result, dict) else {}
        for name in names:
            if name not in found:
                raise self.refused(f"no {name}")
        return [found[name] for name in names]

    def refused(self, what: str) -> RuntimeError:
        """The error for a reply that is not what was asked."""
        return RuntimeError(f"The server at {self.address.shown} says that it is done, and sent back {what}.")

    def request(self, request: Any, tracer: Any) -> None:
        """As nnsight's, but the result stays here: nnsight would write all that it holds into the caller's frame."""
        self.result = super().request(request, tracer)

    def note(self, response: ResponseModel) -> bool:
        """As nnsight's, which prints what the server says of its work."""
        told = response.status == Status.ERROR  # which the error will cut
        most = len(response.description) if told else MOST
        said = {"id": visible(response.id, self._secrets())}
        said["description"] = visible(response.description, self._secrets(), most)
        return super().note(response.model_copy(update=said))

    @staticmethod
    def parse(message: str | bytes) -> ResponseModel:
        """As nnsight's, without unpickling."""
        if not message:
            raise EOFError("an empty status")
        if isinstance(message, str):
            return ResponseModel.model_validate_json(message)
        return ResponseModel.model_validate(plain(bytes(message)))

    def finalize(self, content: bytes) -> Any:
        """As nnsight's, without unpickling, and within the limit."""
        if self.compress:
            content = ZstdDecompressor().stream_reader(content).read(self.most + 1)
        if len(content) > self.most:
            raise TooMuch(self.most)
        return plain(content)

    def _serialize(self, tracer: Any) -> bytes:
        try:
            return super()._serialize(tracer)
        except Exception as error:
            self._own = error
            raise

    def _secrets(self) -> tuple[str, ...]:
        return (self.api_key, *self.address.secrets)

    def _told(self, error: Exception) -> Exception:
        where = self.address.shown
        said = visible(str(error), self._secrets()).strip()
        if isinstance(error, RemoteError):
            before, _, last = (said or "it does not say why").rpartition("\n")
            return RuntimeError(
                f"The server at {where} could not do it, and nothing came back: {last}"
                + (f"\n\nBefore it the server says:\n{before}" if before else "")
            )
        if isinstance(error, _CUT) or (isinstance(error, JSONDecodeError) and not error.doc):
            return ConnectionError(
                f"The connection to {where} ended before the answer was complete, and nothing came back. Ask again."
            )
        if isinstance(error, _LOST):
            return ConnectionError(
                f"The connection to {where} failed, and nothing came back: {type(error).__name__}: {said.rstrip('.')}. "
                "Ask again, or check the address (remote=URL or NDIF_HOST) and the key (NDIF_API_KEY)."
            )
        if isinstance(error, NotPlain):
            return self.refused(f"{said}; nothing of it is used")
        if isinstance(error, TooMuch):
            return RuntimeError(f"The server at {where} sent {said}; nothing of it is used.")
        return RuntimeError(
            f"The server at {where} did not answer as nnsight's servers do, and nothing came back: "
            f"{type(error).__name__}: {said}"
        )


def asked(model: Any, remote: bool | str, most: int) -> Asking | None:
    """The server to ask, for a reply of at most `most` bytes; None here, and for nnsight's own "local"."""
    return None if not remote or remote == "local" else Asking(model, remote, most)
