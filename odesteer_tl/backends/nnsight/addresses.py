"""Addresses of servers: which server `remote` names, and warnings before anything is sent there."""

import ipaddress
import os
import warnings
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from nnsight import CONFIG

NDIF_DOMAIN = "ndif.us"
"""The domain of NDIF's own servers."""

_WARNED = set[str]()
"""The warnings already given in this process; one call of the user makes many requests."""


class Address(NamedTuple):
    """A server's `url`; `shown`, the same for messages, without login; `secrets`, its user name and password."""

    url: str
    shown: str
    secrets: tuple[str, ...]


def address_of(remote: bool | str) -> Address:
    """The server that `remote` names: an address, or True for nnsight's setting (NDIF_HOST or its file).

    Warns, once per server, of plain http to another machine, and of a server that only NDIF_HOST names and that is
    neither NDIF's own nor on this machine. Raises ValueError for a value that is not the address of a server.
    """
    url = remote if isinstance(remote, str) else CONFIG.API.HOST
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise ValueError(
            'remote is True or the address of a server, such as "https://api.ndif.us" or "http://127.0.0.1:8000"; got '
            f"{_shown(parts) if host else 'another ' + type(url).__name__}."
        )
    host_in_url = f"[{host}]" if ":" in host else host
    shown = f"{parts.scheme}://{host_in_url}" + (f":{port}" if port is not None else "") + parts.path
    if not _is_local(host):
        if parts.scheme == "http":
            _warn_once(
                f"Requests to {shown} go over plain http: anyone on the network path can read your texts, the replies "
                "and the key (NDIF_API_KEY), and change the replies. Use an https:// address."
            )
        is_ndif = host == NDIF_DOMAIN or host.endswith("." + NDIF_DOMAIN)
        if not isinstance(remote, str) and os.environ.get("NDIF_HOST") == url and not is_ndif:
            _warn_once(
                f"NDIF_HOST names {shown}, which is not NDIF's own: your texts and the key (NDIF_API_KEY) go there. If "
                f'you want this, type remote="{shown}"; otherwise unset NDIF_HOST.'
            )
    return Address(url, shown, tuple(secret for secret in (parts.username, parts.password) if secret))


def _is_local(host: str) -> bool:
    """Whether a host is this machine, by its name or IP address alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(parts: SplitResult) -> str:
    return repr(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())


def _warn_once(message: str) -> None:
    if message not in _WARNED:
        _WARNED.add(message)
        warnings.warn(message, UserWarning, stacklevel=2)
