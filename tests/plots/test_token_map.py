"""Token maps: every number is that of a plain torch hook, text stays text, and the file needs nothing else."""

import html
import re
import warnings
from base64 import b64encode
from hashlib import sha256

import pytest
import torch
from models import EVERY, hooks_of, load
from oracle import hooked_row
from pages_read import Read

import odesteer_tl as ot
from odesteer_tl.interventions.pages.token_page import Column, ShownToken, Text, token_page, visible
from odesteer_tl.parity.table import parity_rows

PROMPTS = ["the film", "a plot is good and", "it"]
STEPS = 4
ROWS = parity_rows()


@pytest.fixture(scope="module", params=EVERY)
def model(request):
    model = load(request.param, "llama")
    ot.generate(model, "it", max_new_tokens=1)  # a bridge sets itself up at its first pass
    return model


@pytest.fixture(scope="module")
def plain():
    return load("huggingface", "llama")


@pytest.fixture(scope="module")
def method():
    return ROWS["ODESteer"]("llama")


def check_column(column, method, T, steered):
    """A column against the hook; `steered` are the positions."""
    tokens = column["tokens"]
    row = [token["id"] for token in tokens]
    assert [token["position"] for token in tokens] == list(range(len(row)))
    assert [n for n, token in enumerate(tokens) if token["marked"]] == list(steered)
    kl, a, end, _ = hooked_row(row, method, T, list(steered))

    def same(found, expected, atol):
        torch.testing.assert_close(torch.tensor(found), expected.float(), rtol=2e-3, atol=atol)

    same([token["kl"] for token in tokens], kl, 2e-5)
    same([token["before"][0] for token in tokens], method.barrier.value(a), 1e-3)
    same([token["after"][0] for token in tokens], method.barrier.value(end), 1e-3)
    same([token["moved"][0] for token in tokens], (end - a).norm(dim=1) / a.norm(dim=1), 1e-4)
    return row


def test_numbers_texts_and_marks_are_those_of_a_torch_hook(model, method):
    before, hooks = torch.cat([logits(model, row) for row in ([1, 5, 6], [7])]), hooks_of(model)
    T = 0.5 * method.usual_T
    read = Read(ot.token_map(model, method, PROMPTS, T, max_new_tokens=STEPS, batch_size=2).html)
    assert [column["side"] for column in read.columns] == ["before", "after"] * 3
    for number, prompt in enumerate(PROMPTS):
        length = len(prompt.split()) + (read.columns[2 * number]["tokens"][0]["text"] == "<s>")
        for column, strength in zip(read.columns[2 * number : 2 * number + 2], (0.0, T), strict=True):
            row = check_column(column, method, T, range(length - 1, len(column["tokens"])))
            assert [token["part"] for token in column["tokens"][length:]] == ["generated"] * (len(row) - length) != []
            assert {token["part"] for token in column["tokens"][:length]} == {"prompt"}
            written = hooked_row(row, method, strength, list(range(length - 1, len(row))))[-1].argmax(-1)
            assert row[length:] == written[length - 1 : -1].tolist()
    assert hooks_of(model) == hooks
    assert torch.equal(torch.cat([logits(model, row) for row in ([1, 5, 6], [7])]), before)


def logits(model, row):
    out = getattr(model, "_module", model)(torch.tensor([row]))
    return getattr(out, "logits", out)[0].detach()


MASK = torch.tensor([[False, True, False, True], [True, False, False, True], [False, True, False, False]])
RULES = {
    "all": lambda row, length, end: range(length),
    "prompt": lambda row, length, end: range(end),
    "generated": lambda row, length, end: range(end, length),
    "decoding": lambda row, length, end: range(end - 1, length),
    "slice": lambda row, length, end: range(1, length, 2),
    "mask": lambda row, length, end: [n for n in range(length) if n < 4 and MASK[row, n]],
}


@pytest.mark.parametrize("rule", RULES)
def test_texts_that_are_only_read_are_steered_where_positions_say(plain, method, rule):
    texts, ends = ["the film is dull", "a plot", "we saw it and never again"], [2, 1, 3]
    positions = {"slice": slice(1, None, 2), "mask": MASK}.get(rule, rule)
    T = torch.tensor([0.3, 0.5, 0.7]) * method.usual_T
    page = ot.token_map(
        plain, method, texts, T, positions=positions, prompt_lengths=ends, max_new_tokens=0, batch_size=2,
        prepend_bos=False,
    )  # fmt: skip
    read = Read(page.html)
    assert [column["side"] for column in read.columns] == ["before", "after"] * 3
    for number, (text, end) in enumerate(zip(texts, ends, strict=True)):
        for column in read.columns[2 * number : 2 * number + 2]:
            length = len(text.split())
            assert [token["text"] for token in column["tokens"]] == text.split()
            check_column(column, method, float(T[number]), list(RULES[rule](number, length, end)))
            assert [token["part"] == "prompt" for token in column["tokens"]] == [n < end for n in range(length)]


def test_several_edits_are_shown_each_with_its_numbers(plain, method):
    other = ROWS["ITI"]("llama")
    both = [(method, 0.3 * method.usual_T), (other, 0.2 * other.usual_T)]
    read = Read(ot.token_map(plain, both, "the film is", positions="all", max_new_tokens=0).html)
    assert [edit["name"] for edit in read.data["edits"]] == [f"{type(m).__name__}, layer {m.layer}" for m, _ in both]
    row = [token["id"] for token in read.columns[0]["tokens"]]
    _, a, end, _ = hooked_row(row, method, both[0][1], list(range(len(row))))
    said = [f"{type(m).__name__} at layer {m.layer}, T = {strength:.3g}" for m, strength in both]
    assert "; ".join(said) + "; positions: all" in read.text
    assert method.layer == other.layer  # so that the second begins where the first ends
    for number, expected in enumerate((method.barrier.value(a), other.barrier.value(end))):
        found = torch.tensor([token["before"][number] for token in read.columns[0]["tokens"]])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["TruthFlow", "A-LQR", "ITI, heads"])
def test_a_method_without_h_has_no_column_h_and_the_page_says_so(plain, name):
    method = ROWS[name]("llama")
    read = Read(ot.token_map(plain, method, PROMPTS[:2], 0.5 * method.usual_T, max_new_tokens=2).html)
    assert all(own is None for key in ("before", "after") for own in read.data[key])
    assert all(max(own) > 0 for own in read.data["moved"]) and max(read.data["kl"]) > 0
    assert "no barrier h at its site" in read.text


def test_a_calibrated_method_needs_no_strength(plain, method):
    carried = ot.calibrate(plain, method, PROMPTS, 0.05, max_new_tokens=STEPS).method
    read = Read(ot.token_map(plain, carried, PROMPTS[0], max_new_tokens=STEPS).html)
    given = Read(ot.token_map(plain, method, PROMPTS[0], relative_T=carried.relative_T, max_new_tokens=STEPS).html)
    assert read.data == given.data and max(read.data["kl"]) > 0
    with pytest.raises(ValueError, match="T or relative_T"):
        ot.token_map(plain, method, PROMPTS[0])


def test_what_steers_nothing_is_refused(plain, method):
    with pytest.raises(ValueError, match="No token was steered"):
        ot.token_map(plain, method, "the film", 1.0, positions=slice(9, None), max_new_tokens=0)
    with pytest.raises(ValueError, match="max_new_tokens"):
        ot.token_map(plain, method, "the film", 1.0, max_new_tokens=-1)
    for several in ({"T": torch.ones(3)}, {"T": 1.0, "positions": torch.ones(1, 4, dtype=torch.bool)}):
        for steps in (0, 2):
            with pytest.raises(ValueError, match="one value per prompt"):
                ot.token_map(plain, method, ["the film", "it"], max_new_tokens=steps, **several)


HOSTILE = [
    "<script>alert(1)</script>", "</style>", "</span>", "<!--", "]]>", '"', "'", "&", "&lt;", "\u2028", "\u202e",
    "\x00", "`${1}`", "\\", "javascript:alert(1)", '" onmouseover="alert(1)', "\ud800", "<img src=x onerror=alert(1)>",
    " a ",
]  # fmt: skip


def shown(texts, steered=True):
    return [ShownToken(one, n, n, n > 2, steered, ((0.5, 1.5, 0.2),), 0.1) for n, one in enumerate(texts)]


def page_of(tokens):
    columns = [Column("without", "before", tokens), Column("with <b>", "after", tokens)]
    return token_page(["<i>how</i>"], [("A, layer <2>", "wᵀa </script>")], [Text("<u>one", columns)], facts=["<s>"])


def test_no_text_is_markup():
    page = page_of(shown(HOSTILE)).html
    read = Read(page)
    page.encode()  # no lone surrogate is left
    assert read.elements["script"] == 2 and read.elements["style"] == 1
    assert not {"b", "i", "u", "s", "img"} & set(read.elements)
    for column in read.columns:
        assert [token["text"] for token in column["tokens"]] == [visible(one) for one in HOSTILE]
    assert visible("\u2028") == "\\u2028" and visible("\u202e") == "\\u202e" and visible("a\n") == "a↵"
    assert visible("é 語 😀") == "é 語 😀"
    raw = page[page.index('id="data"') : page.index("</script>", page.index('id="data"'))].partition(">")[2]
    assert not set(raw) & set("<>&") and raw.isascii()


def test_the_policy_lets_its_own_style_and_script_run_and_nothing_load():
    read = Read(page_of(shown(["a", "b"])).html)
    for name in ("style", "script"):
        hashed = b64encode(sha256(read.inside[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{hashed}'" in read.policy
    assert "default-src 'none'" in read.policy and "unsafe" not in read.policy


def test_two_thousand_tokens_are_less_than_a_megabyte_and_name_no_address():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(2000, 4, generator=generator).tolist()
    tokens = [
        ShownToken(" wonderful", 50000 + n, n, n > 5, n > 5, ((a, b, abs(c)),), abs(d))
        for n, (a, b, c, d) in enumerate(numbers)
    ]
    page = page_of(tokens)
    assert len(page.html.encode()) < 1_000_000 and page.count == 4000
    assert not re.search(r"https?:|//[a-z]|\bsrc=|url\(|@import|<link|<iframe|fetch\(|XMLHttp", page.html)


def test_a_notebook_shows_it_in_a_frame_and_a_file_holds_it(tmp_path):
    page = page_of(shown(["a", "é", "\n"]))
    frame = page._repr_html_()
    inside = re.fullmatch(r'<iframe [^>]*sandbox="allow-scripts"[^>]* srcdoc="([^"]*)"></iframe>', frame)
    assert inside is not None and html.unescape(inside[1]) == page.html
    page.save(tmp_path / "map.html")
    assert (tmp_path / "map.html").read_text(encoding="utf-8") == page.html
    assert "TokenPage of 6 tokens" in repr(page)


def test_what_is_no_number_is_null():
    tokens = [ShownToken("a", None, 0, False, True, ((float("nan"), float("inf"), 0.25), None), None)]
    page = token_page([], [("A", "h"), ("B", None)], [Text("one", [Column("", "after", tokens)])])
    data = Read(page.html).data
    assert (data["before"], data["moved"], data["kl"], data["id"]) == ([None, None], [[0.25], None], None, [None])


@pytest.mark.parametrize("written", [0, 2])
@pytest.mark.parametrize("said", ["lost to rounding", "largest number of float16"])
def test_a_call_says_once_what_is_wrong_with_its_strength(said, written):
    """To the caller's line, of three batches, read without and with steering after they were written."""
    small = said == "lost to rounding"
    model = load("huggingface", "llama", dtype=torch.bfloat16 if small else torch.float16)
    method = ot.RandomDirection.fit(ot.ContrastiveActivations(*torch.randn(2, 4, 32), layer=1))
    steered = [(method, ot.Strength(relative_T=T)) for T in (1e-3, 2e-3)] if small else [(method, 6e4)] * 4
    calls = {
        "token_map": lambda: ot.token_map(model, steered, PROMPTS, max_new_tokens=written, batch_size=1),
        "generate": lambda: ot.generate(model, PROMPTS, steered, max_new_tokens=2, batch_size=1),
    }
    for name, call in calls.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        ours = [one for one in caught if said in str(one.message)]
        checked = hasattr(ot.generate, "__wrapped__")  # shapes are: other frames stand between
        assert len(ours) == 1 and (checked or ours[0].filename == __file__), (name, [str(one.message) for one in ours])
