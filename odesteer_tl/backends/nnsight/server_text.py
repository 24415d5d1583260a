"""Cleans the text of a server before it is shown: no control characters, no secrets, limited length."""

import re
from collections.abc import Iterable

MAX_CHARS = 2_000
"""The number of characters of a server's text that an error shows: the last ones, where a traceback has its reason."""

_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]")
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
"""Control characters except tab and line feed, and characters that reverse or hide the text around them."""


def visible(text: str, secrets: Iterable[str] = (), max_chars: int = MAX_CHARS) -> str:
    """The last `max_chars` characters of a text, after the number of characters left out. Terminal escapes and other
    control characters are removed; `secrets` are replaced by [key]."""
    shown = _plain(text)
    for form in sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True):
        shown = shown.replace(form, "[key]")
    cut = len(shown) - max_chars
    return shown if cut <= 0 else f"[{cut:,} characters left out] {shown[cut:]}"


def _plain(text: str) -> str:
    return _UNSEEN.sub("", _ESCAPES.sub("", text))


def _forms(secret: str) -> set[str]:
    """A secret as it is, and in the forms in which a library may write it into a message."""
    return {secret, secret.strip(), _plain(secret), repr(secret)[1:-1]} - {""}
