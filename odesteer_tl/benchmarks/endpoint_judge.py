"""A judge behind an OpenAI-compatible endpoint: any server that answers /chat/completions.

The prompt template is a field, and stands under the table. The key is read from the environment when a request is
made: it is in no field, no record, no message and no log.
"""

import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import torch
from jaxtyping import Float
from torch import Tensor

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
LOCAL = ("localhost", "127.0.0.1", "::1")
MOST_BYTES, MOST_WAIT = 2**20, 60.0
"""The longest answer that is read, and the longest wait before a request is repeated, in seconds."""


@dataclass
class Usage:
    """What a judge has cost so far. `cost` in the currency of its prices; tokens as the server counts them."""

    requests: int = 0
    repeated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __str__(self) -> str:
        tokens = f"{self.prompt_tokens} prompt tokens and {self.completion_tokens} completion tokens"
        return f"{self.requests} requests, {self.repeated} of them repeated; {tokens}; cost {self.cost:g}"


@dataclass(frozen=True, eq=False)
class EndpointJudge:
    """Asks `model` at `url` about each text, with `template`, in which {text} stands for it, and reads the answer: its
    first word as one of `answers`, or without `answers` the first number, on `scale` (low, high) as 0 to 1.

        judge = benchmarks.EndpointJudge("http://localhost:8000/v1", "my-model",
            template="Is this text rude? Answer yes or no.\\n\\n{text}", answers={"yes": 1.0, "no": 0.0})
        judge(["You are a fool."]), judge.usage

    `key_from`: the environment variable that holds the key; not set, none is sent. `timeout`: seconds for a request as
    a whole; `retries`: how often it is repeated, with doubling waits from `wait` seconds on or as long as the server
    asks, after no connection, a time-out, a status such as 429 or 503, or an answer that cannot be read.
    `requests_per_minute`: at most; `prices`: of a million prompt and completion tokens. Equal texts are asked about
    once.

    Raises ValueError for a template without {text}, another scheme than http(s), a login in the URL, and a key that
    would travel unencrypted to another machine. When called: ConnectionError where no answer came, RuntimeError for a
    refusal, such as of the key, and for answers that cannot be read. No text gets a score that the server did not give.
    """

    url: str
    model: str
    template: str
    answers: Mapping[str, float] | None = None
    scale: tuple[float, float] = (0.0, 1.0)
    system: str = ""
    key_from: str = "OPENAI_API_KEY"
    max_tokens: int = 16
    temperature: float = 0.0
    timeout: float = 60.0
    retries: int = 5
    wait: float = 1.0
    requests_per_minute: float | None = None
    prices: tuple[float, float] = (0.0, 0.0)
    usage: Usage = field(default_factory=Usage, repr=False)
    _known: dict[str, float] = field(default_factory=dict, repr=False)
    _last: list[float] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:  # raises for no number
            raise ValueError("url is the address of an endpoint, such as http://localhost:8000/v1.")
        if parts.username or parts.password:
            raise ValueError("An address has no login: put the key into the environment, and its name in key_from=.")
        if "{text}" not in self.template:
            raise ValueError("The template has no {text}, in whose place the text is put.")
        if self.answers is not None and not self.answers:
            raise ValueError('answers has scores by word, such as {"yes": 1.0, "no": 0.0}.')
        rate = self.requests_per_minute
        if len(self.scale) != 2 or not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale is (low, high); got {self.scale!r}.")
        if self.timeout <= 0 or self.retries < 0:
            raise ValueError(f"timeout is above 0 and retries 0 or more; got {self.timeout!r} and {self.retries!r}.")
        if rate is not None and not rate > 0:
            raise ValueError(f"requests_per_minute is above 0, or None; got {rate!r}.")
        if len(self.prices) != 2:
            raise ValueError("prices are those of a million prompt tokens and of a million completion tokens.")

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, " n"]:
        """A score per text."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        headers = self._headers() if new else {}
        through = urlsplit(self.url).hostname not in LOCAL  # a proxy would get the key, and unencrypted
        with httpx.Client(follow_redirects=False, timeout=self.timeout, trust_env=through) as client:
            for text in new:
                self._known[text] = self._asked(client, headers, text)
        return torch.tensor([self._known[text] for text in texts], dtype=torch.float64, device="cpu")

    def prompt(self, text: str) -> str:
        """What the server is asked about a text."""
        return self.template.replace("{text}", text)

    def score(self, answer: str) -> float | None:
        """The score of an answer; None where it cannot be read."""
        if self.answers is not None:
            words = re.findall(r"\w+", answer.lower())
            named = {own for word, own in self.answers.items() if word.lower() in words[:1]}
            return named.pop() if len(named) == 1 else None
        found = NUMBER.search(answer)
        low, high = self.scale
        number = math.nan if found is None else float(found.group())
        return (number - low) / (high - low) if low <= number <= high else None

    def record(self) -> dict[str, Any]:
        """In plain values, without what it has cost."""
        return {
            "judge": self.model, "url": self.url, "template": self.template, "system": self.system,
            "answers": None if self.answers is None else dict(self.answers), "scale": list(self.scale),
            "max_tokens": self.max_tokens, "temperature": self.temperature,
        }  # fmt: skip

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self.key_from, "") if self.key_from else ""
        if not key:
            return {}
        parts = urlsplit(self.url)
        if parts.scheme == "http" and parts.hostname not in LOCAL:
            raise ValueError(
                f"The key of {self.key_from} would travel unencrypted: give an https address, or key_from=''."
            )
        return {"Authorization": f"Bearer {key}"}

    def _asked(self, client: httpx.Client, headers: dict[str, str], text: str) -> float:
        messages = [{"role": "system", "content": self.system}] * bool(self.system)
        messages = [*messages, {"role": "user", "content": self.prompt(text)}]
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }
        reason, connected, asked_for = "", False, None
        for attempt in range(self.retries + 1):
            if attempt:
                self.usage.repeated += 1
                own = self.wait * 2 ** (attempt - 1)
                time.sleep(min(own if asked_for is None else max(own, asked_for), MOST_WAIT))
            self._keep_the_rate()
            try:
                status, given, asked_for = self._posted(client, headers, body)
            except (httpx.HTTPError, TimeoutError) as error:
                reason, connected, asked_for = type(error).__name__, False, None
                continue
            connected = True
            if status in RETRIED:
                reason = f"status {status}"
                continue
            if status != 200:
                raise RuntimeError(f"{self.url} refuses with status {status}: {_plain(given, headers)}.")
            answer = self._read(given)
            score = None if answer is None else self.score(answer)
            if score is not None:
                return score
            reason = f"an answer that cannot be read, {_plain(given if answer is None else answer, headers)}"
        message = f"{self.url} gave no score for {text[:60]!r} in {self.retries + 1} requests; the last: {reason}."
        raise RuntimeError(message) if connected else ConnectionError(message)

    def _posted(self, client: httpx.Client, headers: dict[str, str], body: Any) -> tuple[int, str, float | None]:
        """Status, text, and the wait that the server asks for. The clock covers the whole answer, as a server may send
        a byte now and then."""
        self.usage.requests += 1
        end, data = time.monotonic() + self.timeout, b""
        with client.stream("POST", f"{self.url.rstrip('/')}/chat/completions", json=body, headers=headers) as answer:
            for part in answer.iter_bytes():
                data += part
                if time.monotonic() > end:
                    raise TimeoutError
                if len(data) > MOST_BYTES:
                    return answer.status_code, "an answer of more than 1 MiB", None
        asked = answer.headers.get("retry-after", "")
        return answer.status_code, data.decode(errors="replace"), float(asked) if asked.isdigit() else None

    def _read(self, given: str) -> str | None:
        """The answer of the model, whose tokens are counted; None for anything else."""
        try:
            tree = json.loads(given)
            answer = tree["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            return None
        used = tree.get("usage") if isinstance(tree.get("usage"), dict) else {}
        counts = [used.get(name) for name in ("prompt_tokens", "completion_tokens")]
        asked, said = (one if isinstance(one, int) and one >= 0 else 0 for one in counts)
        self.usage.prompt_tokens += asked
        self.usage.completion_tokens += said
        self.usage.cost += (asked * self.prices[0] + said * self.prices[1]) / 1e6
        return answer if isinstance(answer, str) else None

    def _keep_the_rate(self) -> None:
        if self.requests_per_minute is not None:
            if self._last:
                time.sleep(max(0.0, self._last[0] + 60 / self.requests_per_minute - time.monotonic()))
            self._last[:] = [time.monotonic()]


def _plain(text: str, headers: dict[str, str]) -> str:
    """The beginning of what a server sent, without the key, should the server repeat it."""
    key = headers.get("Authorization", "").removeprefix("Bearer ")
    shown = text.replace(key, "***") if key else text
    return repr(shown[:200])
