"""Addresses of servers: which one is asked, and what is to be known of it before anything is sent there."""

import ipaddress
import os
import warnings
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from nnsight import CONFIG

OWN = "ndif.us"
"""Where NDIF's own servers are."""

_TOLD = set[str]()
"""What was warned of in this process: a call asks many times."""


class Address(NamedTuple):
    """A server's `url`; how it is `shown`, without a user's name and password; and these, which are never shown."""

    url: str
    shown: str
    secrets: tuple[str, ...]


def address_of(remote: bool | str) -> Address:
    """The server that `remote` names: itself, or with True the one that nnsight is set to, by NDIF_HOST or a file.

    Warns, once for each server, of plain http to another machine, and of a server named by NDIF_HOST alone that is
    neither NDIF's own nor on this machine. Raises ValueError for what is no address of a server:
    the parts of a request are put behind it, so it has no ? or #.
    """
    url = remote if isinstance(remote, str) else CONFIG.API.HOST
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or set(url) & set(" ?#"):
        raise ValueError(
            'remote is True, or the address of a server, such as "https://api.ndif.us" or "http://127.0.0.1:8000"; got '
            f"{_shown(parts) if host else 'another ' + type(url).__name__}."
        )
    named = f"[{host}]" if ":" in host else host
    shown = f"{parts.scheme}://{named}" + (f":{port}" if port is not None else "") + parts.path
    if not _here(host):
        if parts.scheme == "http":
            _tell(
                f"{shown} is asked over plain http: whoever is on the way can read your texts, what comes back and the "
                "key (NDIF_API_KEY), and write another answer. Use an https:// address."
            )
        own = host == OWN or host.endswith("." + OWN)
        if not isinstance(remote, str) and os.environ.get("NDIF_HOST") == url and not own:
            _tell(
                f"NDIF_HOST names {shown}, which is not NDIF's own: your texts and the key (NDIF_API_KEY) go there. If "
                f'you mean it, say remote="{shown}"; else unset NDIF_HOST.'
            )
    return Address(url, shown, tuple(each for each in (parts.username, parts.password) if each))


def _here(host: str) -> bool:
    """Whether a host is this machine, by its name or number alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(parts: SplitResult) -> str:
    return repr(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl())


def _tell(said: str) -> None:
    if said not in _TOLD:
        _TOLD.add(said)
        warnings.warn(said, UserWarning, stacklevel=2)
