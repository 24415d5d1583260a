"""The endpoint judge, against a server on this machine that stalls, errs, limits the rate and answers rubbish."""

import io
import json
import logging
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from odesteer_tl import benchmarks
from odesteer_tl.benchmarks import endpoint_judge
from odesteer_tl.benchmarks.judges import judge_record

TEMPLATE = "Is it rude? yes or no: {text}"
KEY = "sk-secret-0123456789"
WORDS = {"yes": 1.0, "no": 0.0}


def answer(said, **usage):
    return json.dumps({"choices": [{"message": {"content": said}}], "usage": usage})


@contextmanager
def server(*script):
    """Answers with the entries of the script in turn, the last one again and again: (status, body), (status, body,
    headers), or a function of the handler. Yields the address and the requests, (path, headers, body)."""
    seen, left = [], list(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, dict(self.headers), body))
            what = left.pop(0) if len(left) > 1 else left[0]
            if callable(what):
                what(self)
                return
            status, text, *headers = what
            self.send_response(status)
            for name, value in (headers[0] if headers else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    at = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    at.daemon_threads = True
    poll = 0.02  # how soon it ends, in seconds
    thread = threading.Thread(target=at.serve_forever, args=(poll,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{at.server_address[1]}/v1", seen
    finally:
        at.shutdown()
        at.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The waits between requests, which are not waited for; and a key."""
    found = []
    monkeypatch.setattr(endpoint_judge.time, "sleep", found.append)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return found


def judge(url, **options):
    return benchmarks.EndpointJudge(url, "m", TEMPLATE, **{"answers": WORDS, "timeout": 0.5, "retries": 3} | options)


def test_answers_are_read_counted_and_asked_for_once():
    with server((200, answer("Yes.", prompt_tokens=10, completion_tokens=2)), (200, answer("no", prompt_tokens=8))) as (
        url, seen,
    ):  # fmt: skip
        own = judge(url, prices=(2.0, 8.0), system="You judge.")
        assert own(["fool", "good", "fool"]).tolist() == [1.0, 0.0, 1.0] and own(["fool"]).tolist() == [1.0]
    assert [path for path, _, _ in seen] == ["/v1/chat/completions"] * 2
    _, headers, body = seen[0]
    assert headers["Authorization"] == f"Bearer {KEY}"
    asked = [{"role": "system", "content": "You judge."}, {"role": "user", "content": "Is it rude? yes or no: fool"}]
    assert body == {"model": "m", "temperature": 0.0, "max_tokens": 16, "messages": asked}
    used = own.usage
    assert (used.requests, used.repeated, used.prompt_tokens, used.completion_tokens) == (2, 0, 18, 2)
    assert used.cost == pytest.approx((18 * 2 + 2 * 8) / 1e6)


def stalls(handler):
    time_of(0.8)


def drips(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(8):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time_of(0.2)


def time_of(seconds):
    threading.Event().wait(seconds)  # time.sleep is replaced


def closes(handler):
    handler.connection.close()


@pytest.mark.parametrize(
    "bad",
    [
        stalls, drips, closes, (429, "slow down"), (503, ""), (500, "<html>"), (200, "no json"), (200, "[1]"),
        (200, json.dumps({"choices": []})), (200, answer(None)), (200, answer("perhaps, I cannot say")),
        (200, "[" * 10_000), (200, "x" * (2**20 + 2)),
    ],
)  # fmt: skip
def test_what_goes_wrong_once_is_repeated_and_for_ever_is_an_error_and_no_score(bad, waits):
    with server(bad, (200, answer("yes"))) as (url, seen):
        own = judge(url)
        assert own(["fool"]).tolist() == [1.0] and own.usage.repeated == 1 and len(seen) == 2
    with server(bad) as (url, seen):
        own = judge(url, retries=1)
        with pytest.raises((RuntimeError, ConnectionError), match="gave no score for 'fool' in 2 requests") as error:
            own(["fool"])
        assert len(seen) == 2 and not own._known and KEY not in str(error.value)
    assert waits == [1.0, 1.0]


def test_waits_double_and_are_as_long_as_the_server_asks_but_not_for_ever(waits):
    slow = (429, "", {"Retry-After": "7"})
    with server((503, ""), (503, ""), slow, (200, answer("no"))) as (url, _):
        assert judge(url)(["x"]).tolist() == [0.0]
    assert waits == [1.0, 2.0, 7.0]
    waits.clear()
    with server((429, "", {"Retry-After": "100000"}), (200, answer("no"))) as (url, _):
        judge(url)(["x"])
    assert waits == [60.0]


def test_the_rate_is_kept(waits):
    with server((200, answer("no"))) as (url, _):
        judge(url, requests_per_minute=30.0)(["a", "b", "c"])
    assert len(waits) == 2 and all(1.5 < one <= 2.0 for one in waits)


def test_a_refusal_is_not_repeated_and_the_key_is_nowhere(capfd):
    with server((401, f"the key {KEY} is wrong")) as (url, seen):
        own = judge(url)
        with pytest.raises(RuntimeError, match=r"refuses with status 401: .*the key \*\*\* is wrong"):
            own(["x"])
        assert len(seen) == 1
    with server((302, "", {"Location": "http://127.0.0.1:1/"})) as (url, seen):
        with pytest.raises(RuntimeError, match="status 302"):
            judge(url)(["x"])
    assert KEY not in repr(own) + str(vars(own)) + json.dumps(judge_record(own)) + "".join(capfd.readouterr())
    assert judge_record(own)["template"] == TEMPLATE and "usage" not in judge_record(own)


def test_what_stays_on_this_machine_goes_through_no_proxy(monkeypatch):
    """A proxy of the environment would get the key, unencrypted."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with server((200, answer("yes"))) as (url, seen):
        assert judge(url, retries=0)(["x"]).tolist() == [1.0] and len(seen) == 1


def test_the_key_is_in_no_log_of_the_client():
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    loggers = [logging.getLogger(name) for name in ("httpx", "httpcore")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel("DEBUG")
    try:
        with server((200, answer("yes"))) as (url, _):
            judge(url)(["x"])
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
    assert "HTTP Request: POST" in said.getvalue() and "send_request_headers" in said.getvalue()
    assert KEY not in said.getvalue()


def test_nothing_listens():
    with server((200, "")) as (url, _):
        pass
    with pytest.raises(ConnectionError, match="in 2 requests; the last: ConnectError"):
        judge(url, retries=1)(["x"])


def test_a_key_stays_at_home_and_addresses_hold_no_login(monkeypatch):
    for wrong, message in (
        ({"url": "ftp://here"}, "address of an endpoint"),
        ({"url": "http://me:pw@localhost/v1"}, "has no login"),
        ({"template": "no place"}, "no {text}"),
        ({"answers": {}}, "scores by word"),
        ({"scale": (1.0, 1.0)}, "scale is"),
        ({"requests_per_minute": 0.0}, "requests_per_minute is above 0"),
        ({"url": "http://localhost:99999/v1"}, "[Pp]ort"),
    ):
        with pytest.raises(ValueError, match=message):
            benchmarks.EndpointJudge(**{"url": "http://localhost/v1", "model": "m", "template": TEMPLATE} | wrong)
    away = judge("http://example.org/v1")
    with pytest.raises(ValueError, match="The key of OPENAI_API_KEY would travel unencrypted"):
        away(["x"])
    with server((200, answer("no"))) as (url, seen):
        judge(url, key_from="")(["x"])
        monkeypatch.delenv("OPENAI_API_KEY")
        judge(url)(["y"])
    assert all("Authorization" not in headers for _, headers, _ in seen)


def test_numbers_on_a_scale():
    own = benchmarks.EndpointJudge("http://localhost/v1", "m", TEMPLATE, scale=(1.0, 5.0))
    assert [own.score(said) for said in ("4", "Score: 2.5/5", "1")] == [0.75, 0.375, 0.0]
    assert own.score("none") is None and own.score("11") is None and own.score("-3") is None
    words = judge("http://localhost/v1")
    assert words.score("No, not at all. yes") == 0.0 and words.score("I say yes") is None and words.score("") is None
    assert own.prompt("a {text} b") == "Is it rude? yes or no: a {text} b" and time.monotonic() > 0
