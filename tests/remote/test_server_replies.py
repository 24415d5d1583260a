"""Laws of what a server replies: it is compared with what was asked, never run, and never shown as it came.

The server is `hostile_server`'s, which sends what it is told; the right answers are those of this machine.
"""

import copy
import gzip
import inspect
import io
import logging
import re
import time
import traceback
import tracemalloc
import warnings
import zipfile

import fuzz_server
import pytest
import torch
import typer
from asked_remotely import NAMES, NEW, TEXTS, asked, model
from fuzz_server import Evil, outcome
from hostile_server import KEY, Reply, blob, completed, hostile, status
from nnsight import CONFIG
from nnsight.schema.response import ResponseModel, Status

import odesteer_tl as ot
from odesteer_tl.backends.checks import check_place
from odesteer_tl.backends.nnsight import addresses, deadlines, server_requests
from odesteer_tl.backends.nnsight.addresses import address_of
from odesteer_tl.backends.nnsight.plain_data import NotPlain, plain
from odesteer_tl.backends.nnsight.server_errors import ServerRequest
from odesteer_tl.backends.nnsight.server_text import MAX_CHARS, visible
from odesteer_tl.cli import values


@pytest.fixture(scope="module")
def server():
    with hostile() as running:
        yield running


def said(server, name, reply, kind=RuntimeError):
    """The words of the error that a reply leads to."""
    server.reply = reply
    with pytest.raises(kind) as caught:
        asked(name).call(server.url)
    assert type(caught.value) is kind and caught.value.__context__ is None and caught.value.__cause__ is None
    return str(caught.value)


def changed(name, change):
    saves = copy.deepcopy(asked(name).saves)
    change(saves)
    return Reply(saves=saves)


def part(number, change):
    """A change of the costs (0), the gains (1) or the lifts (2)."""

    def apply(saves):
        found = list(saves["found"])
        found[number] = change(found[number])
        saves["found"] = tuple(found)

    return apply


def first(change):
    """A change of the first layer's activations and norms."""

    def apply(saves):
        saves["values"][0] = change(*saves["values"][0])

    return apply


@pytest.mark.parametrize("by_url", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_honest_reply_is_taken(server, name, by_url):
    server.reply = Reply(saves=asked(name).saves, by_url=by_url)
    assert outcome(server, asked(name), name) == "right"


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("last", first(lambda a, n: (a.flip(0), n)), "rows in another order"),
        ("mean", first(lambda a, n: (torch.cat([a, a[:1]]), n)), r"shape \(3, 32\)"),
        ("mean", first(lambda a, n: (9 * a, n)), "means that are longer"),
        ("last", first(lambda a, n: (a.double(), n)), "float32"),
        ("last", first(lambda a, n: (a[:, :9], n)), r"shape \(2, 9\)"),
        ("last", first(lambda a, n: (a, n[:, :2])), r"norms of shape \(2, 2\)"),
        ("last", first(lambda a, n: (a * float("nan"), n)), "not finite"),
        ("last", lambda saves: saves["values"].pop(), "2 layers"),
        ("plain", lambda saves: saves["tokens"][:, 1].add_(1), "other prompts"),
        ("plain", lambda saves: saves.update(tokens=saves["tokens"].flip(0)), "other prompts"),
        ("plain", lambda saves: saves["tokens"][0, -1:].fill_(10**6), "the vocabulary does not have"),
        ("plain", lambda saves: saves["tokens"][0, -1:].fill_(-1), "the vocabulary does not have"),
        ("plain", lambda saves: saves.update(tokens=saves["tokens"].repeat(2, 1)), "4 texts for 2 prompts"),
        ("plain", lambda saves: saves.update(tokens=saves["tokens"][:, :-NEW]), "no text"),
        ("plain", lambda saves: saves.update(tokens=saves["tokens"][:, :-1]), "not every text has ended"),
        ("plain", lambda saves: saves.update(tokens=torch.cat([saves["tokens"], torch.ones(2, 100).long()], 1)), "105"),
        ("plain", lambda saves: saves.update(steered={1: 4}), r"0 to \d+ at \[\]"),
        ("steered", lambda saves: saves.update(steered={}), r"no count of the tokens steered at \[1\]"),
        ("steered", lambda saves: saves.update(steered={1: 1}), r"a count of 1 .* 2 to \d+"),
        ("steered", lambda saves: saves.update(steered={1: 2**20_000}), "an integer of more than 64 bits"),
        ("mean", first(lambda a, n: (torch.full_like(a, 1e38), torch.full_like(n, 3e38))), "means that are longer"),
        ("steered", lambda saves: saves.update(steered={1: -5}), "a count of -5"),
        ("steered", lambda saves: saves.update(steered={1: 10**4}), "a count of 10000"),
        ("steered", lambda saves: saves.update(steered={0: 4}), "at layer 0"),
        ("steered", lambda saves: saves.update(steered={1: 1.5}), "no count"),
        ("steered", lambda saves: saves.pop("tokens"), "no tokens"),
        ("measured", part(0, lambda costs: -costs), "costs below 0"),
        ("measured", part(0, lambda costs: costs * float("nan")), "not finite"),
        ("measured", part(1, lambda gains: gains / 0), "not finite"),
        ("measured", part(2, lambda lifts: lifts * float("inf")), "not finite"),
        ("measured", part(0, lambda costs: costs[:, 1:]), r"shapes \[\(2, 5\), \(2, 2\), \(2, 3\)\]"),
        ("measured", part(1, lambda gains: gains.T[:1]), r"\(1, 2\).* where \[\(2, 6\), \(2, 2\), \(2, 3\)\]"),
        ("measured", part(2, lambda lifts: lifts.float()), "costs, gains and lifts in float64"),
        ("measured", part(2, lambda lifts: None), "costs, gains and lifts in float64"),
        ("measured", lambda saves: saves.update(found=saves["found"][:2]), "costs, gains and lifts in float64"),
        ("measured", lambda saves: saves.update(found=list(saves["found"])), "costs, gains and lifts in float64"),
        ("measured", lambda saves: saves.update(steered={1: 11}), "a count of 11 .* where 12 to 12"),
        ("measured", lambda saves: saves.update(steered={}), r"no count of the tokens steered at \[1\]"),
        ("measured", lambda saves: saves.pop("found"), "no found"),
    ],
)
def test_a_reply_that_is_not_what_was_asked_is_refused(server, name, change, why):
    told = said(server, name, changed(name, change))
    assert "says that it is done, and sent back" in told
    assert re.search(why, told), told


def test_a_method_that_does_not_fit_is_refused_before_a_server_writes_texts(server):
    before, narrow = len(server.seen), ot.ContrastiveActivations(*torch.randn(2, 9, 8), layer=1)
    with pytest.raises(ValueError, match="fitted at d_model 8, this model has 32"):
        ot.calibrate(model(), ot.CAA.fit(narrow), TEXTS, remote=server.url)
    assert len(server.seen) == before


def test_names_that_were_not_asked_for_change_nothing(server):
    extra = dict.fromkeys(fuzz_server.NAMES_OF_OURS, torch.full((2, 32), 7.0))
    server.reply = Reply(saves=asked("last").saves | extra)
    assert outcome(server, asked("last"), "extra") == "right"


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("where", ["result", "status", "extra"])
def test_nothing_that_a_server_sends_is_run(server, where, protocol):
    """nnsight's own trace, at the end, runs it: the day it does not, what is overridden here is not needed."""
    fuzz_server.executed.clear()
    if where == "status":
        reply = Reply(last=(2, ResponseModel(id="j", status=Status.COMPLETED, data=Evil()).pickle()))
    else:
        saves = Evil() if where == "result" else asked("last").saves | {"extra": Evil()}
        reply = Reply(result=blob(saves, protocol))
    assert "more than data" in said(server, "last", reply)
    assert fuzz_server.executed == []
    try:
        with model().trace(torch.tensor([[1]]), remote=server.url):
            model().lm_head.output.save()
    except Exception:
        pass
    assert fuzz_server.executed == [1]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_read_as_it_was_written(protocol):
    thing = {
        "list": [1, -(2**63), 1.5, None, True, "é", b"\x00", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "dict": {1: 2, "nested": {"again": []}},
        "tensors": [torch.randn(3, 4).T, torch.arange(6)[2:], torch.ones(2).bfloat16(), torch.tensor([True, False])],
        "empty": torch.empty(0, 3),
    }
    file = io.BytesIO()
    torch.save(thing, file, pickle_protocol=protocol)
    found = plain(file.getvalue())
    assert found["list"] == thing["list"] and found["dict"] == thing["dict"]
    for a, b in zip([*found["tensors"], found["empty"]], [*thing["tensors"], thing["empty"]], strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    with pytest.raises(NotPlain, match="cannot be read"):
        plain(file.getvalue()[:-40])


def test_a_small_reply_that_unpacks_to_gigabytes_is_refused(server):
    assert "the most that the reply can have" in said(server, "last", Reply(result=blob(torch.zeros(3_000_000))))


def pickled(program, storage=b""):
    """A torch.save file with this pickle, and the one storage that it may name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x04" + program + b".")
        archive.writestr("archive/data/0", storage)
    return file.getvalue()


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value


BYTES = 2**18
STORED = b"(" + text(b"storage") + b"ctorch\nByteStorage\n" + text(b"0") + text(b"cpu")
STORED += b"J" + BYTES.to_bytes(4, "little") + b"tq\0Q"
LATIN1 = b"c_codecs\nencode\nq\0(" + text(b"a" * BYTES) + text(b"latin1") + b"tq\1]("
DOUBLED = b")q\0" + b"h\0h\0\x86q\0" * 200  # each tuple holds the last one twice: to show it takes 2^200 steps
LISTS = b"".join(b"]r%c\0\0\0" % each for each in range(100))  # empty ones that are filled from the last
FILLED = b"".join(b"j%c\0\0\0(j%c\0\0\0j%c\0\0\0e" % (k, k - 1, k - 1) for k in range(99, 0, -1))


@pytest.mark.parametrize(
    ("name", "program", "why"),
    [
        ("marks on a deep stack", b"N" * 40_000 + b"(t" * 25_000, "cannot be read"),
        ("instructions", b"N" * 120_000, "100,000 pickle instructions"),
        ("one storage many times", b"](" + STORED + b"h\0Q" * 1000 + b"e", "more bytes than the file has"),
        ("one text many times", LATIN1 + b"h\0h\1R" * 1000 + b"e", "more bytes than the file has"),
        ("tuples in tuples", b"(" + DOUBLED + b"t", "hold one another"),
        ("lists in lists", b"(" + LISTS + FILLED + b"t", "hold one another"),
        ("a list that holds itself", b"]q\0h\0a", "hold one another"),
        ("a name of tuples", DOUBLED + b"h\0\x93", "a value of the wrong type"),
        ("a status of tuples", DOUBLED + b"cnnsight.schema.response\nStatus\nh\0\x85R", "a value of the wrong type"),
        ("a key of tuples", b"}" + DOUBLED + b"Ns", "other keys than text and numbers"),
        ("a long number", b"\x8b" + (4000).to_bytes(4, "little") + b"\x7f" * 4000, "more than 64 bits"),
        ("many axes", b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORED + b"K\0(" + b"K\1" * 9 + b"tq\1h\1tR", "8 axes"),
    ],
)
def test_a_small_file_does_not_become_much_work_or_memory(name, program, why):
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(NotPlain, match=why):
            plain(pickled(program, b"\0" * BYTES))
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 20  # seconds; it is hours, or more memory than there is, without a limit


def gzipped(size):
    return gzip.compress(bytes(size), 9)


@pytest.mark.parametrize("where", ["result", "encoded result", "refusal", "encoded refusal", "message"])
def test_what_a_server_sends_is_not_read_beyond_what_there_can_be(server, where, monkeypatch):
    """64 MB, or a few kB that unpack to them, in each place that is read; the limits are made small."""
    monkeypatch.setattr(server_requests, "WORDS", 2**20)
    big, packed = bytes(2**26), gzipped(2**26)
    encoded = {"Content-Encoding": "gzip"}
    reply = {
        "result": Reply(saves=asked("plain").saves, by_url=True, result=big),
        "encoded result": Reply(by_url=True, result=packed, headers=encoded),
        "refusal": Reply(posted=(401, big, {})),
        "encoded refusal": Reply(posted=(401, packed, encoded)),
        "message": Reply(before=[(1, big)]),
    }[where]
    tracemalloc.start()
    try:
        told = said(server, "plain", reply)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ("encoding that was not asked for" if "encoded" in where else "the most that the reply can have") in told
    assert held < 2**26 * 1.5, held  # the server's own 64 MB are in this process


def test_the_answer_to_another_request_is_refused(server):
    other = ResponseModel(id="another", status=Status.COMPLETED, data=blob(asked("plain").saves)).pickle()
    assert "the answer to another request" in said(server, "plain", Reply(last=(2, other)))


def test_a_result_over_plain_http_is_not_taken_from_a_server_asked_over_https():
    backend = ServerRequest.__new__(ServerRequest)
    backend.host = "https://api.ndif.us"
    with pytest.raises(NotPlain, match="no https"):
        backend.download_result("http://127.0.0.1:1/result")


@pytest.mark.parametrize(
    "call",
    [
        lambda: ot.generate(model(), "the film", max_new_tokens=1, remote=""),
        lambda: ot.collect(model(), "the film", "a plot", layer=1, remote=""),
    ],
)
def test_an_empty_address_is_no_wish_to_run_here(call):
    """As a variable has that is not set."""
    with pytest.raises(ValueError, match=r"remote is True, False, .* as text.* an empty text"):
        call()


@pytest.mark.parametrize("remote", [0, 1, 2.5, b"http://127.0.0.1:1", ["http://127.0.0.1:1"]])
def test_what_is_no_text_is_no_wish_to_ask_ndif(remote):
    unchecked = inspect.unwrap(check_place)  # the tests' own checks of types would be first
    with pytest.raises(ValueError, match=f"as text.* got {type(remote).__name__}"):
        unchecked(model(), remote, None)


def test_the_servers_words_are_cleaned_and_cut(server):
    text = "\x1b[2J\x1b]0;title\x07" + "x" * 100_000 + "\nRuntimeError: \x1b[31mno\x9b1m\x00\u202e luck"
    told = said(server, "plain", Reply(last=(1, status(Status.ERROR, text))))
    assert "nothing came back: RuntimeError: no luck" in told and "characters left out]" in told
    assert len(told) < MAX_CHARS + 400 and not fuzz_server.UNSEEN.search(told)
    left = int(told.partition("[")[2].partition(" ")[0].replace(",", ""))
    assert left + MAX_CHARS == 100_000 + len("\nRuntimeError: no luck")


def test_the_key_is_never_shown(server, capsys):
    echo = f"you sent ndif-api-key: {KEY}, also {KEY[:4]}\x1b[1m{KEY[4:]}"
    server.reply = Reply()
    replies = [Reply(last=(1, status(Status.ERROR, echo))), Reply(posted=(401, echo.encode(), {}))]
    replies += [Reply(posted=(400, b'{"detail": {"headers": "%s"}}' % KEY.encode(), {}))]
    CONFIG.APP.REMOTE_LOGGING = True  # what nnsight prints, too
    try:
        for reply in replies:
            reply.before = [(1, status(Status.LOG, echo)), (1, status(Status.RUNNING, echo))]
            assert "[key]" in said(server, "plain", reply)
            assert KEY not in said(server, "plain", reply)
    finally:
        CONFIG.APP.REMOTE_LOGGING = False
    printed = capsys.readouterr().out
    assert "you sent" in printed and KEY not in printed
    refused = Reply(handshake=b"HTTP/1.1 403 No\r\nContent-Length: %d\r\n\r\n%s" % (len(echo), echo.encode()))
    told = said(server, "plain", refused, ConnectionError)
    assert KEY not in told and "403" in told
    assert any(each.get("ndif-api-key") == KEY for each in server.seen)  # it was sent, and could have come back


def test_a_key_that_a_library_writes_into_its_own_message_is_not_shown():
    assert visible("Illegal header value b'my-key\\n'", ["my-key\n"]) == "Illegal header value b'[key]'"
    assert visible("a" * 10, max_chars=4) == "[6 characters left out] aaaa"
    assert visible("e", ["", " "]) == "e"


def test_a_redirect_of_a_request_does_not_take_the_key_along(server):
    """Nor does that of the websocket, which websocket-client would follow, to plain http too."""
    with hostile() as other:
        moved = Reply(posted=(307, b"", {"Location": other.url + "/request"}))
        assert "307" in said(server, "plain", moved)
        assert other.seen == []
        away = b"HTTP/1.1 302 Found\r\nLocation: " + other.url.replace("http", "ws").encode() + b"/subscribe\r\n\r\n"
        other.reply = Reply(session=b"{}")
        assert "Redirect" in said(server, "plain", Reply(handshake=away), ConnectionError)
        assert other.seen == []


def told_of(remote):
    addresses._WARNED.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            address_of(remote)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost", "http://[::1]:80/x", "https://example.org"])
def test_a_server_here_or_over_https_that_was_named_goes_without_a_word(url):
    assert told_of(url) == []


@pytest.mark.parametrize("url", ["http://example.org", "http://10.0.0.1:8000", "http://127.0.0.1.example.org"])
def test_plain_http_to_another_machine_is_warned_of_once(url):
    (told,) = told_of(url)
    assert told.startswith(f"Requests to {url} go over plain http") and "https://" in told


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("https://example.org", True),
        ("https://ndif.us.example.org", True),
        ("https://evilndif.us", True),
        ("https://api.ndif.us", False),
        ("http://127.0.0.1:9", False),
    ],
)
def test_a_server_that_only_the_environment_names_is_named_once(monkeypatch, url, warned):
    monkeypatch.setenv("NDIF_HOST", url)
    monkeypatch.setattr(CONFIG.API, "HOST", url)
    told = told_of(True)
    assert len(told) == warned and all(f"NDIF_HOST names {url}" in each for each in told)


def test_warnings_come_before_anything_is_sent():
    addresses._WARNED.clear()
    with pytest.raises(UserWarning, match=r"^Requests to http://far.example:80 go over"), warnings.catch_warnings():
        warnings.simplefilter("error")
        ot.generate(model(), "the film", max_new_tokens=2, remote="http://far.example:80")


@pytest.fixture
def logged():
    """All that is logged, as it is written down. pytest's `caplog` is off: see pyproject.toml."""
    written, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(written), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield written
    root.removeHandler(handler)
    root.setLevel(level)


def test_a_login_in_an_address_is_refused_and_shown_nowhere(server, logged, capsys, monkeypatch):
    """httpx writes every address that it asks into its log."""
    server.reply = Reply(saves=asked("plain").saves)
    asked("plain").call(server.url)
    assert server.url in logged.getvalue()
    before = len(server.seen)
    with_login = server.url.replace("//", "//its-me:pass-4711@")
    monkeypatch.setattr(CONFIG.API, "HOST", with_login)
    told = ""
    for remote in (with_login, True):
        with pytest.raises(ValueError, match=f"no password.*type remote='{server.url}'") as caught:
            asked("plain").call(remote)
        told += "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    told += logged.getvalue() + "".join(capsys.readouterr())
    assert "4711" not in told and "its-me" not in told and len(server.seen) == before


@pytest.mark.parametrize("login", ["me:pass-4711", "4711", "me:47/4711", "me:47?4711", "me:47#4711", "a@4711"])
@pytest.mark.parametrize("scheme", ["http", "https", "ftp", ""])
def test_no_part_of_a_login_is_shown_however_it_is_written(login, scheme):
    with pytest.raises(ValueError, match="no user name and no password") as caught:
        address_of(f"{scheme}://{login}@far.example")
    assert "47" not in str(caught.value)
    with pytest.raises(typer.BadParameter, match="no user name and no password"):
        values.address(f"{scheme}://{login}@far.example")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "ftp://a",
        "http://",
        "http://a:b",
        "http://a b",
        "https://x\n.y",
        "http://a?b=c",
        "http://a#b",
    ],
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="remote is True or the address of a server"):
        address_of(url)


@pytest.mark.parametrize(
    "step",
    ["handshake", "session", "posted headers", "posted", "before", "last", "result headers", "result"],
)
def test_a_server_that_drips_is_given_up(server, monkeypatch, step):
    """A byte every .05 s: no single read waits for long."""
    monkeypatch.setattr(deadlines, "LONGEST", 0.3)
    monkeypatch.setattr(deadlines, "SLOWEST", 1e12)
    long = status(Status.LOG, "x" * 100)
    reply = Reply(saves=asked("plain").saves, before=[(1, long)], by_url=step.startswith("result"), drips=step)
    began = time.monotonic()
    told = said(server, "plain", reply, ConnectionError)
    assert "was not complete within 0.3 seconds" in told and "Ask again" in told
    assert time.monotonic() - began < 1.5


def test_a_server_may_think_between_messages_as_long_as_it_likes(server, monkeypatch):
    """Pings and statuses come meanwhile, a part of a message does not count as one."""
    monkeypatch.setattr(deadlines, "LONGEST", 0.3)
    monkeypatch.setattr(deadlines, "SLOWEST", 1e12)
    ping = (9, b"")
    slow = Reply(saves=asked("plain").saves, before=[ping] * 12, drips="before")  # two bytes each: 1.2 s
    server.reply = slow
    assert outcome(server, asked("plain"), "plain") == "right"


def test_completed_is_what_nnsight_writes():
    assert plain(completed(b"abc")) == {"id": "job", "status": Status.COMPLETED, "data": b"abc"}
