"""Texts by token as one HTML file: coloured by h, by displacement or by KL, with the numbers of the token under the
mouse or the focus.

The file holds its style, its script and its numbers, and its content security policy lets nothing else run or load: the
policy names the hashes of the two, so that no text of a token could run even if it were not escaped. It is.
"""

import html
import json
import math
import unicodedata
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path
from string import Template
from typing import Any, Literal, NamedTuple

Numbers = tuple[float | None, float | None, float]
"""h before and after, None where there is no h, and the displacement ‖a(T) − a‖/‖a‖."""
_NOTHING = (None, None, None)

CONTINUED = "◦"
"""Stands for a token that only continues the character of the token before it."""


class ShownToken(NamedTuple):
    """One token: its `text`, `id` and `position` in its row, whether it was `generated` and `steered`, the `Numbers` of
    each edit (None where the edit did not run), and KL(unsteered ‖ steered) of the next token in nats, None where it is
    not known."""

    text: str
    id: int | None
    position: int
    generated: bool
    steered: bool
    edits: tuple[Numbers | None, ...]
    kl: float | None


@dataclass(frozen=True)
class Column:
    """Tokens side by side with others; coloured by h, they show h `side` steering."""

    title: str
    side: Literal["before", "after"]
    tokens: Sequence[ShownToken]


@dataclass(frozen=True)
class Text:
    """One text of a page, in one column or in two."""

    title: str
    columns: Sequence[Column]


@dataclass(frozen=True, eq=False)
class TokenPage:
    """A page of HTML without a network: `html` is all of it, `save(path)` writes it, a notebook shows it."""

    html: str
    count: int

    def save(self, path: str | PathLike[str]) -> None:
        """Write the page to a file, in UTF-8."""
        Path(path).write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        """The page in a frame of its own: neither its style nor its script reaches the notebook."""
        return (
            '<iframe title="Token map" sandbox="allow-scripts" style="width:100%;height:600px;border:0;resize:vertical"'
            f' srcdoc="{html.escape(self.html)}"></iframe>'
        )

    def __repr__(self) -> str:
        return f'TokenPage of {self.count} tokens: .save("map.html"), or the last line of a notebook\'s cell'


def read_once(tokens: Sequence[ShownToken], has_h: bool) -> list[Column]:
    """The columns of a text that is the same with and without steering: h before and after, or one if there is no h."""
    after = Column("with steering", "after", tokens)
    return [Column("before steering", "before", tokens), after] if has_h else [after]


def token_page(
    how: Sequence[str],
    edits: Sequence[tuple[str, str | None]],
    texts: Sequence[Text],
    *,
    facts: Sequence[str] = (),
    continuation: str = "generated",
    same: bool = False,
) -> TokenPage:
    """The page of `texts`. `edits`: the name of each and the formula of its h, None where it has none; `how` the
    numbers were made, and `facts` about them, in words; `continuation` is what follows the prompts. `same`: both
    columns of a text hold the same tokens."""
    tokens = [token for text in texts for column in text.columns for token in column.tokens]
    beside = (Path(__file__).with_suffix(f".{kind}") for kind in ("html", "css", "js"))
    template, style, script = (path.read_text(encoding="utf-8") for path in beside)
    missing = [name for name, formula in edits if formula is None]
    notes = [f"{' and '.join(dict.fromkeys(missing))}: no barrier h at its site, so h is left out."] if missing else []
    notes += [f"{CONTINUED} is a token that continues the character before it."] * any(
        t.text == CONTINUED for t in tokens
    )
    data: dict[str, Any] = {
        "same": same,
        "edits": [{"name": name, "h": formula} for name, formula in edits],
        "id": [token.id for token in tokens],
        "position": [token.position for token in tokens],
        "kl": None if all(token.kl is None for token in tokens) else [_number(token.kl) for token in tokens],
    }
    for place, key in enumerate(("before", "after", "moved")):
        by_edit = [[_number((token.edits[n] or _NOTHING)[place]) for token in tokens] for n in range(len(edits))]
        data[key] = [numbers if any(one is not None for one in numbers) else None for numbers in by_edit]
    page = Template(template).substitute(
        style=style,
        script=script,
        style_hash=hashed(style),
        script_hash=hashed(script),
        how="".join(f"<p>{html.escape(line)}</p>" for line in (*how, *notes)),
        facts="".join(f"<li>{html.escape(line)}</li>" for line in facts),
        texts="".join(_text(text, continuation) for text in texts),
        data=_as_data(data),
    )
    return TokenPage(page, len(tokens))


def visible(text: str) -> str:
    """The text of a token with what cannot be seen, or would turn the line round, as an escape: "\\u202e"."""
    return "".join(
        f"\\u{ord(one):04x}" if unicodedata.category(one)[0] == "C" or one in "\u2028\u2029" else one
        for one in text.replace("\r\n", "↵").replace("\n", "↵").replace("\t", "⇥")
    )


def _text(text: Text, continuation: str) -> str:
    columns = "".join(_column(column, continuation) for column in text.columns)
    return f'<section><h2>{html.escape(text.title)}</h2><div class="columns">{columns}</div></section>'


def _column(column: Column, continuation: str) -> str:
    parts = []
    for name, generated in (("prompt", False), (continuation, True)):
        tokens = [token for token in column.tokens if token.generated == generated]
        spans = "".join(_span(token, first=token is column.tokens[0]) for token in tokens)
        if tokens:
            kind = "generated" if generated else "prompt"
            parts.append(f'<h4>{html.escape(name)}</h4><p class="{kind}" dir="auto">{spans}</p>')
    title = html.escape(column.title)
    return f'<div class="{column.side}" role="group" aria-label="{title}"><h3>{title}</h3>{"".join(parts)}</div>'


def _span(token: ShownToken, first: bool) -> str:
    kind, stop = "t s" if token.steered else "t", 0 if first else -1  # the arrow keys lead on from the first
    line = "<br>" if "\n" in token.text else ""
    return f'<span class="{kind}" tabindex="{stop}">{html.escape(visible(token.text))}</span>{line}'


def _number(value: float | None) -> float | None:
    """Five digits; None for what is no number, which the page shows as a dash."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _as_data(data: Any) -> str:
    """JSON in which no character could end the element that holds it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def hashed(source: str) -> str:
    """The hash by which a content security policy names a style or a script."""
    return b64encode(sha256(source.encode()).digest()).decode()
