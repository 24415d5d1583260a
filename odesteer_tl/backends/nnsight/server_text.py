"""What a server says, made fit to be shown: no control characters, no secrets, no more than a page."""

import re
from collections.abc import Iterable

MOST = 2_000
"""Characters of a server's text that an error shows: the last ones, where a traceback has its reason."""

_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]")
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
"""Controls but for tab and line feed, and what turns or hides the text around it."""


def visible(text: str, secrets: Iterable[str] = (), most: int = MOST) -> str:
    """The last `most` characters of a text, after how many were left out, without terminal escapes, other control
    characters, and `secrets`, in whose place stands [key]."""
    found = _plain(text)
    for secret in sorted({form for each in secrets for form in _forms(each)}, key=len, reverse=True):
        found = found.replace(secret, "[key]")
    left = len(found) - most
    return found if left <= 0 else f"[{left:,} characters left out] {found[left:]}"


def _plain(text: str) -> str:
    return _UNSEEN.sub("", _ESCAPES.sub("", text))


def _forms(secret: str) -> set[str]:
    """A secret as it is, and as a library may write it into a message of its own."""
    return {secret, secret.strip(), _plain(secret), repr(secret)[1:-1]} - {""}
