"""Token pages read back from their HTML, by a parser that knows nothing of how they were made."""

import json
from html.parser import HTMLParser

VOID = {"meta", "br", "link", "input", "img"}


class Read(HTMLParser):
    """`columns`: of each its side and tokens, a token with its text, whether it is marked, the heading above it, and
    its numbers. `elements`: how often each element occurs. `inside`: the text of the elements style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.columns, self.elements, self.inside, self.policy, self.text = [], {}, {}, "", ""
        self._open, self._heading = [], ""
        self.feed(page)
        self.close()
        self.data = json.loads(self.inside["application/json"])
        for number, token in enumerate([token for column in self.columns for token in column["tokens"]]):
            token |= {key: self.data[key][number] for key in ("id", "position")}
            token["kl"] = None if self.data["kl"] is None else self.data["kl"][number]
            for key in ("before", "after", "moved"):
                token[key] = [None if own is None else own[number] for own in self.data[key]]

    def handle_starttag(self, tag, attrs):
        attrs, name = dict(attrs), tag
        self.elements[tag] = self.elements.get(tag, 0) + 1
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy":
            self.policy = attrs["content"]
        if tag == "script":
            name = attrs.get("type", "script")
        if attrs.get("class") in ("before", "after"):
            self.columns.append({"side": attrs["class"], "tokens": []})
        if tag == "span" and attrs.get("class") in ("t", "t s"):
            marked = attrs["class"] == "t s"
            self.columns[-1]["tokens"].append({"text": "", "marked": marked, "part": self._heading})
            name = "token"
        if tag not in VOID:
            self._open.append(name)
        if tag == "h4":
            self._heading = ""

    def handle_endtag(self, tag):
        if tag not in VOID:
            self._open.pop()

    def handle_data(self, data):
        if not self._open:
            return
        here = self._open[-1]
        if here == "token":
            self.columns[-1]["tokens"][-1]["text"] += data
        elif here == "h4":
            self._heading += data
        elif here in ("style", "script", "application/json"):
            self.inside[here] = self.inside.get(here, "") + data
        else:
            self.text += data
