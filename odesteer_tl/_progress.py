"""Progress bars: one switch for all of them, and none where nobody sees a bar.

ODESTEER_TL_PROGRESS=0 shows none. Where standard error is no terminal there is none either: ODESTEER_TL_PROGRESS=1, or
`progress=True` where a verb takes it, then says each stage in one line.
"""

import os
import sys
from collections.abc import Iterable
from typing import Any

DELAY = 2.0
"""Seconds before a bar shows that nobody asked for."""


def bar(
    items: Iterable[Any] | None = None, *, said: str, total: int | None = None, progress: bool | None = None
) -> Any:
    """`items` (or `total` updates) under a bar of tqdm that says `said`. `progress` None shows it when work lasts."""
    from tqdm.auto import tqdm

    switch = os.environ.get("ODESTEER_TL_PROGRESS", "")
    wanted = {"0": False, "1": True}.get(switch) if progress is None or switch == "0" else progress
    seen = bool(getattr(sys.stderr, "isatty", bool)())
    if wanted and not seen:
        print(said, file=sys.stderr, flush=True)
    hidden = wanted is False or not seen
    return tqdm(items, desc=said, total=total, delay=0 if wanted else DELAY, disable=hidden, leave=False)
