"""Progress bars, with one switch for all of them.

ODESTEER_TL_PROGRESS=0 shows none. If standard error is no terminal there are no bars either; ODESTEER_TL_PROGRESS=1, or
the argument `progress=True`, then prints each stage in one line.
"""

import os
import sys
from collections.abc import Iterable
from typing import Any

DELAY = 2.0
"""Seconds before a bar appears that was not asked for."""


def bar(
    items: Iterable[Any] | None = None, *, label: str, total: int | None = None, progress: bool | None = None
) -> Any:
    """`items` (or `total` updates) with a tqdm bar called `label`. `progress` None shows it after `DELAY` seconds."""
    from tqdm.auto import tqdm

    switch = os.environ.get("ODESTEER_TL_PROGRESS", "")
    show = {"0": False, "1": True}.get(switch) if progress is None or switch == "0" else progress
    is_terminal = bool(getattr(sys.stderr, "isatty", bool)())
    if show and not is_terminal:
        print(label, file=sys.stderr, flush=True)
    hidden = show is False or not is_terminal
    return tqdm(items, desc=label, total=total, delay=0 if show else DELAY, disable=hidden, leave=False)
