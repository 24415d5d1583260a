"""Random replies of a hostile server: each must give the right answer, or one of the two errors that are promised.

`replies(number, seed)` asks it so many times. Left out is what no client can see: another number in place of one that
could be right.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from asked_remotely import NAMES, NEW, Asked, asked
from hostile_server import KEY, Reply, Server, blob, completed, hostile, status
from nnsight.schema.response import Status

UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u200b]")
LONGEST = 4_000
"""Characters of an error: what is said of the server, and 2,000 of its own."""

OTHERS: list[Any] = [None, 0, -1, 1.5, float("nan"), "text", b"bytes", True, [], {}, (), [[]], {"values": 1}, [None]]
OTHERS += [torch.zeros(0), torch.tensor(1.0), torch.zeros(2, 3, 4), torch.tensor([True]), torch.zeros(2, 2).half()]
TEXTS = ["", "no", "\x1b[2J\x1b]0;title\x07\x9b1m\x00", KEY, f"ndif-api-key: {KEY[:5]}\x1b[1m{KEY[5:]}", "x" * 300_000,
         "Traceback\n  File\nRuntimeError: \u202eolleh", "\ud83d\ude00 %s {}", "[" * 5_000]  # fmt: skip
NAMES_OF_OURS = ["self", "model", "server", "samples", "norms", "sources", "where", "mask", "batch", "remote", "chosen"]

executed: list[int] = []
"""What a reply ran on this machine."""


def execute(number: int) -> int:
    """What a server's code would be."""
    executed.append(number)
    return number


class Evil:
    """Pickled, a call of `execute`."""

    def __reduce__(self) -> Any:
        return execute, (1,)


def replies(number: int, seed: int = 0) -> Counter[str]:
    """How often each outcome came of `number` replies: "right", or an error's name. Raises AssertionError, with the
    seed and the case, at any other."""
    ends: Counter[str] = Counter()
    with hostile() as server:
        for case in range(number):
            chance = random.Random(f"{seed} {case}")
            name = chance.choice(NAMES)
            server.reply = hostile_reply(chance, asked(name), server)
            ends[outcome(server, asked(name), f"seed {seed}, case {case} ({name}): {server.reply!r:.500}")] += 1
    return ends


def outcome(server: Server, what: Asked, case: str) -> str:
    """What a call came to: "right", "RuntimeError" or "ConnectionError"; AssertionError for all else."""
    executed.clear()
    try:
        found = what.call(server.url)
    except (RuntimeError, ConnectionError) as error:
        told = str(error)
        assert type(error) in (RuntimeError, ConnectionError), f"{case}: {type(error).__name__}"
        assert not UNSEEN.search(told) and KEY not in told and len(told) <= LONGEST, f"{case}: {told!r:.3000}"
        assert error.__cause__ is None and error.__context__ is None, f"{case}: the server's words hang on the error"
        end = type(error).__name__
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
    else:
        same = [a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in zip(found, what.right, strict=True)]
        assert all(same), f"{case}: a wrong answer was believed"
        end = "right"
    assert not executed, f"{case}: the server's code was run"
    return end


def hostile_reply(chance: random.Random, what: Asked, server: Server) -> Reply:
    """A reply with one thing, or a few, that an honest one has not."""
    reply = Reply(saves=dict(what.saves), by_url=chance.random() < 0.3)
    for _ in range(chance.choice([0, 1, 1, 1, 2])):
        chance.choice([_saves, _saves, _saves, _saves, _bytes, _frames, _last, _posted, _session, _handshake])(
            chance, reply, server
        )
    return reply


def _saves(chance: random.Random, reply: Reply, server: Server) -> None:
    saves = reply.saves
    if not isinstance(saves, dict) or not saves:
        return
    name = chance.choice(list(saves))
    kind = chance.choice("replace drop rename extra type evil mutate mutate mutate mutate".split())
    if kind == "replace":
        saves[name] = chance.choice([each for each in OTHERS if each != {} or saves[name] != {}])
    elif kind == "drop":
        del saves[name]
    elif kind == "rename":
        saves[name + "_"] = saves.pop(name)
    elif kind == "extra":
        saves |= {chance.choice(NAMES_OF_OURS): chance.choice(OTHERS) for _ in range(5)}
    elif kind == "type":
        reply.saves = chance.choice([list(saves.items()), None, 3, "saves", [saves], {0: saves}, torch.ones(2)])
    elif kind == "evil":
        saves[chance.choice([name, "extra"])] = chance.choice([Evil(), [Evil()], {Evil: 1}, torch.float16, Counter])
    elif name == "values" and isinstance(saves[name], list):
        saves[name] = _other_values(chance, saves[name])
    elif name == "tokens" and isinstance(saves[name], torch.Tensor):
        saves[name] = _other_tokens(chance, saves[name])
    elif name == "found" and isinstance(saves[name], tuple):
        saves[name] = _other_effects(chance, saves[name])
    elif name == "steered":
        layer = chance.choice([1, 1, 0, -1, 99, "1", 1.0, True, None])
        other = layer != 1 or type(layer) is not int or not saves[name]
        counts = [5, -5, 10**6, 2.5, "5", None, 2**70] if other else [-5, 0, 10**6, 2.5, None, 2**20_000]
        saves[name] = {layer: chance.choice(counts)}


def _other_values(chance: random.Random, values: list[Any]) -> list[Any]:
    """Activations and norms of which at least one is not what was asked, so that it shows."""
    at = chance.randrange(len(values))
    try:
        a, n = values[at]
        mean = a.shape[0] == 2 and not torch.allclose(a.norm(dim=1), n[[0, 1], [3, 2]])
        nan, inf = float("nan"), float("inf")
        changes: list[Callable[[], Any]] = [
            lambda: (a[:-1], n), lambda: (torch.cat([a, a[:1]]), n), lambda: (a.double(), n), lambda: (a, n.double()),
            lambda: (a.half(), n), lambda: (a[:, :-1], n), lambda: (a.unsqueeze(0), n), lambda: (a.T, n),
            lambda: (a, n[:-1]), lambda: (a, n[:, :-1]), lambda: (a, -n), lambda: (a, n.T), lambda: (a, a),
            lambda: (a.index_fill(1, torch.tensor([3]), nan), n), lambda: (a.index_fill(1, torch.tensor([0]), inf), n),
            lambda: (a, n.index_fill(1, torch.tensor([0]), nan)), lambda: (a * 1e4, n), lambda: (a, n, n),
            lambda: [a, n], lambda: (a.to_sparse(), n), lambda: a, lambda: (None, n), lambda: (a.long(), n),
            lambda: (a[:0], n),
        ]  # fmt: skip
        if not mean:
            changes += [lambda: (a.flip(0), n), lambda: (2 * a, n), lambda: (torch.zeros_like(a), n)]
        values = [*values[:at], chance.choice(changes)(), *values[at + 1 :]]
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):  # it was changed already
        return values
    return chance.choice([values, values, values, values[::-1][:1], values * 2, tuple(values)])


def _other_effects(chance: random.Random, found: tuple[Any, ...]) -> Any:
    """Costs, gains and lifts of which one is not what was asked, so that it shows."""
    at, nan = chance.randrange(3), float("nan")
    changes: list[Callable[[Any], Any]] = [
        lambda part: part[:-1], lambda part: part[:, :-1], lambda part: part.T, lambda part: part.float(),
        lambda part: part.index_fill(1, torch.tensor([1]), nan), lambda part: part / 0, lambda part: part.tolist(),
        lambda part: part.unsqueeze(0), lambda part: part.to_sparse(), lambda part: None, lambda part: part[:0],
    ]  # fmt: skip
    try:
        one = chance.choice([*changes, lambda part: -part] if at == 0 else changes)(found[at])
    except (TypeError, AttributeError, IndexError, RuntimeError):  # it was changed already
        return found
    if isinstance(one, torch.Tensor) and one.shape == found[at].shape and one.dtype == found[at].dtype == torch.float64:
        assert not torch.equal(one, found[at])
    changed = (*found[:at], one, *found[at + 1 :])
    return chance.choice([changed, changed, changed, changed, found[::-1], found[:2], list(found), (*found, one)])


def _other_tokens(chance: random.Random, tokens: torch.Tensor) -> Any:
    """Tokens of which at least one is not what was asked, so that it shows."""
    if tokens.ndim != 2 or len(tokens) != 2 or tokens.dtype != torch.int64:
        return tokens
    row, column = chance.randrange(2), chance.randrange(tokens.shape[1] - NEW, tokens.shape[1])
    changed = tokens.clone()
    changed[row, column] = chance.choice([-1, 10**6, 2**62, -(2**63)])
    prompt = tokens.clone()
    prompt[row, 2] += 1
    more = torch.ones(2, chance.choice([1, 100]), dtype=torch.long)
    return chance.choice(
        [changed, prompt, tokens.flip(0), tokens[:1], torch.cat([tokens, tokens[:1]]), tokens[:, :-NEW], tokens[:, 1:],
         tokens[:, :-1], torch.cat([tokens, more], 1), tokens.double(), tokens.bool(), tokens.T, tokens.tolist(),
         tokens[0], tokens.unsqueeze(0), tokens[:, :2]]
    )  # fmt: skip


def _bytes(chance: random.Random, reply: Reply, server: Server) -> None:
    protocol = chance.choice([2, 4])
    data = blob(reply.saves, protocol)
    raw = bytearray(data)
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    huge = blob(torch.zeros(3_000_000))  # a few bytes on the way
    reply.result = chance.choice([data, data[: chance.randrange(len(data))], bytes(raw), b"", b"PK\x03\x04", huge,
                                  bytes(chance.randrange(256) for _ in range(200)), data * 2])  # fmt: skip


def _frames(chance: random.Random, reply: Reply, server: Server) -> None:
    good = [(1, status(kind, chance.choice(TEXTS[:5]))) for kind in (Status.RUNNING, Status.QUEUED, Status.LOG)]
    reply.before = [chance.choice(good) for _ in range(chance.randrange(4))]
    if chance.random() < 0.5:
        reply.before.append(_bad_frame(chance))


def _bad_frame(chance: random.Random) -> tuple[int, bytes]:
    said = [status(Status.ERROR, text) for text in TEXTS if "\ud83d" not in text]
    texts = [
        b"{}",
        b"[]",
        b"null",
        b"3",
        b"",
        b"{",
        b'{"id": 3, "status": "X"}',
        b"\xff\xfe",
        b'"' + b"x" * 200_000 + b'"',
    ]
    texts += [
        json.dumps({"id": "j", "status": "COMPLETED", "data": data}).encode()
        for data in (
            None,
            3,
            {},
            [1],
            "",
            "no url",
            "file:///etc/passwd",
            "http://127.0.0.1:1/x",
            "http://[",
            "ftp://a/b",
        )
    ]
    pickles = [blob({}), completed(Evil()), completed(None), completed(3), completed([1]), completed("x"), b"\x80\x04."]
    pickles += [completed(b""), completed(b"abc"), completed(blob(Evil())), b"PK", completed({"values": 1})]
    opcode, chosen = chance.choice([(1, said), (1, said), (1, texts), (2, pickles)])
    return (chance.choice([opcode, opcode, opcode, opcode, 3 - opcode, 0, 11]), chance.choice(chosen))


def _last(chance: random.Random, reply: Reply, server: Server) -> None:
    if chance.random() < 0.3:
        reply.cut = chance.randrange(200)
    else:
        reply.last = _bad_frame(chance)


def _posted(chance: random.Random, reply: Reply, server: Server) -> None:
    code = chance.choice([200, 200, 201, 204, 301, 302, 307, 400, 401, 403, 404, 413, 418, 429, 500, 503, 599, 999])
    bodies = [json.dumps({"detail": text}).encode() for text in TEXTS] + [b"", b"{}", b"[]", b"[1]", b"\xff", b"null"]
    bodies += [text.encode(errors="replace") for text in TEXTS] + [
        status(Status.ERROR, text[:99]) for text in TEXTS[:5]
    ]
    bodies += [status(Status.COMPLETED), status(Status.RECEIVED), b'{"detail": {"a": [1]}}', b'{"detail": 3}']
    headers = [
        {},
        {},
        {"Location": "http://127.0.0.1:1/"},
        {"Content-Length": "99999999"},
        {"Content-Encoding": "gzip"},
    ]
    reply.posted = (code, chance.choice(bodies), chance.choice(headers))


def _session(chance: random.Random, reply: Reply, server: Server) -> None:
    reply.session = chance.choice([b"", b"{}", b"[]", b"3", b"null", b"{", b"\xff", b'{"session_id": 3}', b"[" * 20_000,
                                   b'{"session_id": null}', b'{"session_id": {"a": 1}}', b"x" * 300_000])  # fmt: skip


def _handshake(chance: random.Random, reply: Reply, server: Server) -> None:
    text = chance.choice(TEXTS).encode(errors="replace")
    away = b"HTTP/1.1 302 Found\r\nLocation: "
    reply.handshake = chance.choice(
        [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 999\r\n\r\n", b"HTTP/1.1 x y\r\n\r\n",
         b"\x00" * 99, b"HTTP/1.1 101 Yes\r\n\r\n", away + b"ws://127.0.0.1:1/\r\n\r\n",
         away + b"\r\n\r\n", away + b"x:y\r\n\r\n",
         away + server.url.replace("http", "ws").encode() + b"/subscribe\r\n\r\n",
         b"HTTP/1.1 403 No\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text),
         b"HTTP/1.1 500 " + text.replace(b"\n", b" ") + b"\r\n\r\n"]
    )  # fmt: skip
