"""What `check_data` finds: items with verdicts, as a table, as JSON and as a page."""

import textwrap
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal

from odesteer_tl.evaluation.data_check.page import framed, page
from odesteer_tl.evaluation.json_text import json_text
from odesteer_tl.remote.checks import StaysHere

Verdict = Literal["pass", "look", "stop"]


@dataclass(frozen=True)
class Item:
    """One thing that was looked at: its `name`, the `verdict`, `why`, and what to type or `do` (empty for a pass);
    `numbers` are those of the sentence."""

    name: str
    verdict: Verdict
    why: str
    do: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OddText:
    """A text whose held-out h contradicts its label: its `side` and its `row` there, from 0; `placement`, the share of
    the other side's held-out texts that it is on the right side of."""

    side: Literal["desired", "undesired"]
    row: int
    placement: float
    h: float
    text: str


@dataclass(frozen=True)
class Area:
    """A cross-validated AUC and its standard error, of a baseline or of h at a place."""

    name: str
    auc: float
    error: float


@dataclass(frozen=True, eq=False)
class DataCheck(StaysHere):
    """What `ot.check_data` found: `items`, the `texts` to read first, and all `areas` (AUCs).

        check = ot.check_data(model, desired, undesired)
        print(check)                                                    # or check.to_html("check.html")
        assert check.verdict != "stop"

    `best`: the layer and reading position with the largest AUC, None if none was measured. A notebook shows the page.
    """

    usual_name: ClassVar[str] = "check"
    usual_part: ClassVar[str] = "best"

    items: tuple[Item, ...]
    texts: tuple[OddText, ...]
    areas: tuple[Area, ...]
    best: tuple[int, Any] | None
    counts: tuple[int, int]

    @property
    def verdict(self) -> Verdict:
        """The gravest of the items' verdicts."""
        found = {item.verdict for item in self.items}
        return "stop" if "stop" in found else "look" if "look" in found else "pass"

    def __getitem__(self, name: str) -> Item:
        """The item of that name, as in check["length"]. Raises KeyError for a name that is none."""
        return {item.name: item for item in self.items}[name]

    def __str__(self) -> str:
        lines = [f"{self.verdict}: {self.counts[0]} desired and {self.counts[1]} undesired texts", ""]
        for item in self.items:
            said = f"{item.why} {item.do}".strip()
            lines.append(textwrap.fill(said, 110, initial_indent=f"{item.verdict:<5} {item.name:<14} ",
                                       subsequent_indent=" " * 21))  # fmt: skip
        if self.areas:
            lines += ["", f"{'held-out AUC':<28}      ± error"]
            lines += [f"{one.name:<28}  {one.auc:.3f} ± {one.error:.3f}" for one in self.areas]
        if self.texts:
            lines += [
                "",
                "texts whose held-out h lies on the other side, the deepest first: side, row from 0, the share of",
                "the other side's texts of its fold that it is on the right side of",
            ]
            for odd in self.texts:
                start = textwrap.shorten(odd.text, 70, placeholder=" …")
                lines.append(f"{odd.side:<9} {odd.row:>5}  {odd.placement:.2f}  {start!r}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """All that was found as JSON; a number that is not finite is null."""
        tree = {"verdict": self.verdict, "counts": self.counts, "best": self.best}
        parts = {name: [asdict(one) for one in getattr(self, name)] for name in ("items", "areas", "texts")}
        return json_text(tree | parts)

    @property
    def html(self) -> str:
        """The page: one HTML file that loads nothing and runs no script; all texts are escaped."""
        return page(self)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write the page to a file, in UTF-8."""
        Path(path).write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        return framed(self.html)
