"""Chats, system prompts and templates, held against strings written by hand; and text files of other programs."""

import pytest
import torch
from instances import without_shape_checks
from models import load
from typer.testing import CliRunner

import odesteer_tl as ot
from odesteer_tl.backends import tokenise
from odesteer_tl.backends.tokenize import tokenise_answers
from odesteer_tl.cli import app

TEMPLATE = (
    "<s> {% for m in messages %}{{ {'system': 'but', 'user': 'we', 'assistant': 'it'}[m['role']] }} {{ m['content'] }} "
    "</s> {% endfor %}{% if add_generation_prompt %}it {% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE
DEAF = "<s> we {{ messages[-1]['content'] }} </s>"
CHAT = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "was good"}]


@pytest.fixture(scope="module", params=["bridge", "nnsight"])
def model(request):
    found = load(request.param, "llama")
    found.tokenizer.chat_template = TEMPLATE
    yield found
    found.tokenizer.chat_template = None


def ids(model, text):
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def tokens(batch):
    return [row[mask].tolist() for row, mask in zip(*batch, strict=True)]


def test_a_chat_is_a_text_as_the_template_writes_it(model):
    asked, answer = "<s> we the film </s> it", "<s> we the film </s> it was good"
    assert tokens(tokenise(model, CHAT[:1])) == [ids(model, asked)]
    assert tokens(tokenise(model, CHAT)) == [ids(model, answer)]  # up to the end of what the assistant says
    assert tokens(tokenise(model, [CHAT, CHAT[:1]])) == [ids(model, answer), ids(model, asked)]
    assert tokens(tokenise(model, CHAT[:1], chat_template=DEAF)) == [ids(model, "<s> we the film </s>")]
    assert tokens(tokenise(model, "the film", chat_template=True)) == tokens(tokenise(model, CHAT[:1]))


def test_a_system_prompt_stands_before_the_text(model):
    expected = "<s> but never bad </s> we the film </s> it"
    assert tokens(tokenise(model, "the film", chat_template=True, system="never bad")) == [ids(model, expected)]
    assert tokens(tokenise(model, CHAT, system="never bad")) == [ids(model, f"{expected} was good")]
    out = ot.generate(model, CHAT, max_new_tokens=2, stop_at_eos=False, system="never bad")
    assert out.tokens[0].tolist()[:-2] == ids(model, f"{expected} was good")
    batch, starts = tokenise_answers(model, ["the film"], ["was bad"], chat_template=True, system="never bad")
    assert tokens(batch) == [ids(model, f"{expected} was bad")] and starts.tolist() == [len(ids(model, expected))]


def test_each_side_has_its_own_system_prompt_and_template(model):
    """One call reads what two calls with one prompt each do; answers alone, after unequal prompts."""
    queries, good, bad = ["the film", "a plot"], ["was great", "it is fine"], ["is dull", "was slow"]
    reading = {"layer": 1, "position": "mean", "chat_template": True}
    acts = ot.collect(model, good, bad, queries=queries, system=("never bad", "but slow and dull"), **reading)
    one, other = (
        ot.collect(model, good, bad, queries=queries, system=system, **reading)
        for system in ("never bad", "but slow and dull")
    )
    torch.testing.assert_close(acts.desired, one.desired, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(acts.undesired, other.undesired, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(acts.undesired, one.undesired, atol=1e-2)
    assert acts.paired and acts.queries is None and one.queries is not None  # two prompts: a pair has no one query
    with pytest.raises(ValueError, match="these carry no queries"):
        ot.TruthFlow.fit(acts)
    pair = ot.collect(model, "film", "film", layer=1, chat_template=(TEMPLATE, DEAF))
    each = [ot.collect(model, "film", "film", layer=1, chat_template=one).desired for one in (TEMPLATE, DEAF)]
    torch.testing.assert_close(pair.desired, each[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pair.undesired, each[1], rtol=1e-5, atol=1e-5)
    one_sided = ot.collect(model, "film", "film", 1, chat_template=True, system=(None, "never"))
    assert tokens(one_sided.tokens[0]) == [ids(model, "<s> we film </s> it")]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (
            "film",
            {"chat_template": (True, False)},
            "Give one chat template for all texts here; only ot.collect takes a pair",
        ),
        ("film", {"chat_template": 3}, "chat_template is True .* a Jinja template or a function of the text; got int"),
        ("film", {"chat_template": "{% for"}, "The chat template does not write messages of user: "),
        ("film", {"system": "never"}, "A system prompt is written by a chat template: pass chat_template=True"),
        ("film", {"system": "never", "chat_template": str.upper}, "A system prompt is written by a chat template"),
        (
            "film",
            {"system": ("a", "b"), "chat_template": True},
            "system is one system prompt here, a string; got tuple",
        ),
        (torch.tensor([[1, 5]]), {"system": "never"}, "tokens are taken as they are"),
        (
            "film",
            {"system": "never", "chat_template": NO_SYSTEM},
            "messages of system, user: no system here.*user's text",
        ),
        (
            "film",
            {"system": "never", "chat_template": DEAF},
            "leaves the system prompt out: put it into the user's text",
        ),
        (
            [{"role": "system", "content": "a"}, *CHAT],
            {"system": "never"},
            "The chat already begins with a system message",
        ),
        ([{"role": "user"}], {}, r"A message needs a \"role\" and a \"content\", this one has \['role'\]"),
        (CHAT, {"chat_template": str.upper}, "A function takes texts, not chats"),
        (["film", CHAT], {}, r"Expected texts, chats, .* got list of list, str; a chat is a list of messages"),
        ([3, 4], {}, "got list of int"),
        ([], {}, "No text was given"),
    ],
)
def test_what_cannot_be_written_is_refused(model, texts, options, message):
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        tokenise(model, texts, **options)


def test_pairs_of_another_length_and_chats_as_answers_are_refused(model):
    with without_shape_checks():
        with pytest.raises(
            ValueError, match=r"system is one for all texts or a pair, \(for desired, for undesired\); got 3"
        ):
            ot.collect(model, "film", "film", 1, chat_template=True, system=("a", "b", "c"))
        with pytest.raises(ValueError, match="With queries= the answers are plain texts"):
            ot.collect(model, [CHAT], ["bad"], 1, queries=["film"], chat_template=True)


def test_a_chat_without_a_template_says_what_to_pass():
    bare = load("bridge", "llama")
    with pytest.raises(ValueError, match="this tokenizer has no chat template: pass a Jinja template"):
        tokenise(bare, CHAT)


def fitted(tmp_path, desired: bytes):
    (tmp_path / "good.txt").write_bytes(desired)
    (tmp_path / "bad.txt").write_text("A terrible film.\nDull and slow.\n", encoding="utf-8")
    files = [str(tmp_path / name) for name in ("good.txt", "bad.txt", "out")]
    return CliRunner().invoke(app, ["fit", *files, "--layer", "1", "--method", "caa", "--no-calibrate"])


def test_marks_and_line_ends_of_other_systems_are_no_part_of_the_text(tmp_path):
    texts = b"A great film.\r\nWe loved it.\r\n"
    weights = []
    for data in (texts.replace(b"\r", b""), texts, b"\xef\xbb\xbf" + texts, texts.replace(b"\n", b"")):
        done = fitted(tmp_path, data)
        assert done.exit_code == 0, done.output
        weights.append(ot.load(tmp_path / "out").barrier.weight)
    assert all(torch.equal(weights[0], other) for other in weights[1:])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Un film génial.\n".encode("latin-1"), "is not UTF-8 (byte 0xe9 at 9): save it as UTF-8, or"),
        ("Un film génial.\n".encode("latin-1"), "convert it, as in `iconv -f latin1 -t utf-8"),
        ("A great film.\n".encode("utf-16"), "is UTF-16, not UTF-8: save it as UTF-8, or convert it, as in `iconv -f"),
        ("A great film.\n".encode("utf-32"), "is UTF-32, not UTF-8"),
        (b"A great film.\nSo\0good.\n", "holds a NUL character at 16: it is not a text file"),
        (b"", "is empty; it should hold one text per line"),
        (b"\xef\xbb\xbf\n \n", "is empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_its_name(tmp_path, data, message):
    done = fitted(tmp_path, data)
    said = " ".join(done.output.split())
    assert done.exit_code == 2 and message in said and "good.txt" in said, done.output
