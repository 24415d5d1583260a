"""Asking a server: whatever goes wrong on the way has one of two names, and nothing that was not steered comes back."""

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from threading import Lock

import httpx
import websocket
from huggingface_hub.errors import HFValidationError
from nnsight import CONFIG
from nnsight.intervention.backends.remote import RemoteError
from pydantic import ValidationError
from zstandard import ZstdError

PATIENCE = 60.0
"""Seconds within which a server has to take the connection. Its work, and the queue before it, may last."""

_LOCK, _ASKING = Lock(), list[float | None]()
"""The setting as it was, and an entry for each thread that asks."""

_LOST = (websocket.WebSocketException, httpx.HTTPError, OSError)
_GARBLED = (ValidationError, JSONDecodeError, EOFError, ZstdError)
"""What nnsight raises as it reads a status or a result that was cut off; a restarting server sends an empty one."""


@contextmanager
def asking(remote: bool | str) -> Iterator[None]:
    """Inside it a remote trace raises RuntimeError where the server failed or refused, and ConnectionError where it was
    not reached, does not answer, or the connection was lost; ValueError for a model that has no name for a server. Any
    other error is left as it is, and so is all that a local trace raises."""
    if not remote:
        yield
        return
    where = remote if isinstance(remote, str) else CONFIG.API.HOST
    try:
        with _patience():
            yield
    except RemoteError as error:
        if isinstance(error.__cause__, httpx.TransportError):
            raise _lost(where, error.__cause__) from error
        said = str(error).strip() or "it does not say why"
        last = said.splitlines()[-1]
        raise RuntimeError(
            f"The server at {where} could not do it, and nothing came back: {last}" + f"\n\n{said}" * (said != last)
        ) from error
    except HFValidationError as error:
        raise ValueError(
            "A server knows a model by its name on the Hugging Face Hub, and this one is from a folder or from memory: "
            'load it as nnsight.TransformersModel("owner/name"), or leave out remote=.'
        ) from error
    except _GARBLED as error:
        raise ConnectionError(
            f"The connection to {where} ended before the answer was complete, and nothing came back. Ask again."
        ) from error
    except _LOST as error:
        raise _lost(where, error) from error


@contextmanager
def _patience() -> Iterator[None]:
    """nnsight has no limit for the handshake, and would wait for ever. The setting is the process's: the first thread
    to ask makes it, the last one takes it back."""
    with _LOCK:
        if not _ASKING:
            _ASKING.append(websocket.getdefaulttimeout())
            websocket.setdefaulttimeout(_ASKING[0] or PATIENCE)
        _ASKING.append(None)
    try:
        yield
    finally:
        with _LOCK:
            _ASKING.pop()
            if len(_ASKING) == 1:
                websocket.setdefaulttimeout(_ASKING.pop())


def _lost(where: str, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"The connection to {where} failed, and nothing came back: {type(error).__name__}: {str(error).rstrip('.')}. "
        "Ask again, or check the address (remote=URL or NDIF_HOST) and the key (NDIF_API_KEY)."
    )
