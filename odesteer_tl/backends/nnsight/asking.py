"""Asking a server: whatever goes wrong on the way has one of two names, and nothing that was not steered comes back."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from nnsight.intervention.backends.remote import RemoteError
from websocket import WebSocketException


@contextmanager
def asking(remote: bool | str) -> Iterator[None]:
    """Inside it a remote trace raises RuntimeError where the server failed or refused, and ConnectionError where it was
    not reached or the connection was lost. A local one is left as it is."""
    try:
        yield
    except RemoteError as error:
        raise RuntimeError(f"The server could not do it, and nothing came back: {error}") from error
    except (WebSocketException, httpx.HTTPError, OSError) as error:
        if not remote:
            raise
        where = remote if isinstance(remote, str) else "the NDIF server"
        raise ConnectionError(
            f"The connection to {where} failed, and nothing came back: {type(error).__name__}: {error}. Ask again, or "
            "check the address (remote=URL or NDIF_HOST) and the key (NDIF_API_KEY)."
        ) from error
