"""Random replies of a hostile server give the right answer or one of the two promised errors; the fuzzer notices."""

import re

import fuzz_server
import pytest
from fuzz_server import replies

from odesteer_tl.backends.nnsight import measures, run


def test_every_reply_gives_the_right_answer_or_one_of_two_errors():
    ends = replies(30)
    assert ends.total() == 30 and set(ends) == {"right", "RuntimeError", "ConnectionError"}


def test_a_reply_that_is_believed_is_noticed(monkeypatch):
    monkeypatch.setattr(run, "check_norms", lambda *_: None)
    monkeypatch.setattr(run, "tokens_in", lambda value, *_: value)
    monkeypatch.setattr(run, "report_in", lambda value, *_: value)
    monkeypatch.setattr(measures, "report_in", lambda value, *_: value)
    monkeypatch.setattr(measures, "effects_in", lambda value, *_: value)
    with pytest.raises(AssertionError, match=r"seed \d+, case \d+ \("):
        replies(40, seed=4)


def test_the_same_seed_sends_the_same_replies():
    import random

    def sent(case):
        chance = random.Random(f"7 {case}")
        with fuzz_server.hostile() as server:
            made = fuzz_server.hostile_reply(chance, fuzz_server.asked("plain"), server)
            return re.sub(r"127\.0\.0\.1:\d+", "here", repr(made))

    assert [sent(case) for case in range(5)] == [sent(case) for case in range(5)]
    assert len({sent(case) for case in range(5)}) > 1
