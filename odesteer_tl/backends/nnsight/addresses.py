"""Addresses of servers: which server `remote` names, and warnings before anything is sent there."""

import ipaddress
import os
import re
import warnings
from urllib.parse import urlsplit

from nnsight import CONFIG

NDIF_DOMAIN = "ndif.us"
"""The domain of NDIF's own servers."""

_WARNED = set[str]()
"""The warnings already given in this process; one call of the user makes many requests."""


def address_of(remote: bool | str) -> str:
    """The address of the server that `remote` names: an address, or True for nnsight's setting (NDIF_HOST or its file).

    Warns, once per server, of plain http to another machine, and of a server that only NDIF_HOST names and that is
    neither NDIF's own nor on this machine. Raises ValueError for a value that is not the address of a server,
    which has no ? or #: the paths of the requests are put behind it; and for one with a user name or a password, which
    httpx would write into its log.
    """
    url = remote if isinstance(remote, str) else CONFIG.API.HOST
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port  # a port that is none raises
    except ValueError:
        parts, host = urlsplit(""), ""
    if isinstance(url, str) and "@" in url:
        raise ValueError(
            "The address of a server has no user name and no password, which libraries would write into their logs: "
            f"type remote={_shown(url)}, and give your key in NDIF_API_KEY."
        )
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or set(url) & set(" ?#"):
        raise ValueError(
            'remote is True or the address of a server, such as "https://api.ndif.us" or "http://127.0.0.1:8000"; got '
            f"{_shown(url) if host else 'another ' + type(url).__name__}."
        )
    if not _is_local(host):
        if parts.scheme == "http":
            _warn_once(
                f"Requests to {url} go over plain http: anyone on the network path can read your texts, the replies "
                "and the key (NDIF_API_KEY), and change the replies. Use an https:// address."
            )
        is_ndif = host == NDIF_DOMAIN or host.endswith("." + NDIF_DOMAIN)
        if not isinstance(remote, str) and os.environ.get("NDIF_HOST") == url and not is_ndif:
            _warn_once(
                f"NDIF_HOST names {url}, which is not NDIF's own: your texts and the key (NDIF_API_KEY) go there. If "
                f'you want this, type remote="{url}"; otherwise unset NDIF_HOST.'
            )
    return url


def _is_local(host: str) -> bool:
    """Whether a host is this machine, by its name or IP address alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(url: str) -> str:
    """An address for messages, without what may be secret: all that is before an @, and what follows a ? or #."""
    scheme, _, rest = url.partition("://")
    return repr(f"{scheme}://" + re.split("[?#]", rest.rpartition("@")[2])[0])


def _warn_once(message: str) -> None:
    if message not in _WARNED:
        _WARNED.add(message)
        warnings.warn(message, UserWarning, stacklevel=2)
