"""The page of a check: one HTML file without script and network, in which every text is escaped.

Its content security policy lets nothing load or run but the style, which it names by its hash.
"""

import html
from typing import Any

from odesteer_tl.interventions.pages.token_page import hashed, visible

_STYLE = """body{font:1rem/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}th,td{text-align:left;vertical-align:top;padding:.3rem .8rem;
border-bottom:1px solid #8886}.stop,.look,.pass{font-weight:600}.stop{color:#c22}.look{color:#a60}.pass{color:#285}"""


def page(check: Any) -> str:
    """The page of a `DataCheck`."""
    items = [
        (f'<span class="{one.verdict}">{one.verdict}</span>', _safe(one.name), _safe(f"{one.why} {one.do}"))
        for one in check.items
    ]
    areas = [(_safe(one.name), f"{one.auc:.3f} ± {one.error:.3f}") for one in check.areas]
    odd = [(one.side, str(one.row), f"{one.placement:.2f}", f"{one.h:.3g}", _safe(one.text)) for one in check.texts]
    policy = f"default-src 'none'; style-src 'sha256-{hashed(_STYLE)}'; base-uri 'none'; form-action 'none'"
    said = f"{check.counts[0]} desired and {check.counts[1]} undesired texts"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Check of the data</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>Check of the data: <span class="{check.verdict}">{check.verdict}</span></h1>\n<p>{said}</p>\n'
        + _table("What was looked at", ("verdict", "item", "why, and what to do"), items)
        + _table("Held-out AUC", ("of", "AUC ± standard error"), areas)
        + _table("Texts to read first", ("side", "row, from 0", "placement", "h", "text"), odd)
        + "</body>\n</html>\n"
    )


def framed(source: str) -> str:
    """The page in a frame of its own, for notebooks."""
    return (
        '<iframe title="Check of the data" sandbox="" style="width:100%;height:600px;border:0;resize:vertical"'
        f' srcdoc="{html.escape(source)}"></iframe>'
    )


def _safe(text: str) -> str:
    return html.escape(visible(text.strip()))


def _table(title: str, heads: tuple[str, ...], rows: list[Any]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{one}</th>' for one in heads)
    body = "\n".join("<tr>" + "".join(f'<td dir="auto">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    return f"<h2>{title}</h2>\n<table>\n<tr>{head}</tr>\n{body}\n</table>\n"
