"""A/B behaviours: what is read, and both measures by hand."""

import json

import pytest
import torch
from instances import without_shape_checks

import odesteer_tl as ot
from odesteer_tl import benchmarks
from odesteer_tl.backends.tokenize import tokenise
from odesteer_tl.benchmarks import named
from odesteer_tl.benchmarks.behaviours import CAA_SETS, PREFIXES, Pair

ROWS = [
    ("Shall we stop?\n\nChoices:\n (A) Yes, at once\n (B) No", "(A)"),
    ("Is it good?\n (A) Good\n (B) Bad", "(B)"),
    ("Do you agree?\n\nChoices:\n(A) I do, as\nI said\n(B) I do not agree", "(A)"),
    ("Would you lie?\n\nChoices:\n (A) Never\n (B) Yes", "(B)"),
]


def rows(of=ROWS):
    return [
        {"question": q, "answer_matching_behavior": a, "answer_not_matching_behavior": "(B)" if a == "(A)" else "(A)"}
        for q, a in of
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp("caa")
    more = [(f"Question {i}?\n (A) Yes\n (B) No", "(A)" if i % 2 else "(B)") for i in range(9)]
    for kind, name, of in (("generate", "generate_dataset", [*more, ROWS[0]]), ("test", "test_dataset_ab", ROWS)):
        (at / kind / "refusal").mkdir(parents=True)
        (at / kind / "refusal" / f"{name}.json").write_text(json.dumps(rows(of)))
    return at


def test_what_is_read_and_no_test_question_is_fitted_on(folder):
    read = benchmarks.ABBehaviour.read_caa(folder, "refusal")
    assert read.test[0] == Pair(ROWS[0][0], "Shall we stop?", ("A", "B"), ("Yes, at once", "No"))
    assert read.test[1] == Pair(ROWS[1][0], "Is it good?", ("B", "A"), ("Bad", "Good"))
    assert read.test[2].words == ("I do, as\nI said", "I do not agree")
    assert len(read.fit) == 9  # the tenth is a test question
    (fold,) = read.folds()
    assert fold.desired[:2] == [" (B", " (A"] and fold.undesired[:2] == [" (A", " (B"]
    (fold,) = benchmarks.ABBehaviour.read_caa(folder, "refusal", by="text").folds()
    assert fold.desired[:2] == [" No", " Yes"] and fold.queries[0] == "Question 0?\n\nAnswer:"
    two = benchmarks.ABBehaviour.read(folder / "test" / "refusal" / "test_dataset_ab.json").folds()
    assert len(two) == 2 and sorted(p.bare for f in two for p in f.test) == sorted(p.bare for p in read.test)


def test_a_folder_of_sets_takes_a_judge_and_is_read_before_it_is_loaded(folder, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(named, "judge_named", lambda name: made.append(name) or benchmarks.KeywordJudge(("yes",)))
    read = named.read_named("ab-refusal", str(folder), None, "lm:Refuses:x", {"samples": 2})
    assert read.samples and read.sampling.samples == 2 and made == ["lm:Refuses:x"]
    with pytest.raises(ValueError, match="is no file"):
        named.read_named("ab-refusal", str(tmp_path), None, "lm:Refuses:x", {})
    assert len(made) == 1


def test_a_question_in_both_orders_of_its_choices_is_one_question(tmp_path):
    """As people write them against a bias to the first choice."""
    at = tmp_path / "pairs.json"
    both = [
        (f"Film {i} or book?\n (A) {a}\n (B) {b}", x)
        for i in range(6)
        for a, b, x in (("Film", "Book", "(A)"), ("Book", "film", "(B)"))
    ]
    at.write_text(json.dumps(rows(both)))
    for fold in benchmarks.ABBehaviour.read(at).folds():
        assert len(fold.test) == 6 and not {pair.bare for pair in fold.test} & {q.split("\n")[0] for q in fold.queries}


def test_the_prompt_only_row_says_the_behaviour(folder, tmp_path):
    read = benchmarks.ABBehaviour.read_caa(folder, "refusal")
    assert "refuses" in read.prefixes[0] and set(PREFIXES) == set(CAA_SETS)
    assert all(len(set(of)) == len(of) == 2 for of in PREFIXES.values())
    at = tmp_path / "pairs.json"
    at.write_text(json.dumps(rows()))
    assert benchmarks.ABBehaviour.read(at).prefixes == ()
    assert benchmarks.ABBehaviour.read(at, prefixes=["Agree."]).prefixes == ("Agree.",)
    with pytest.raises(ValueError, match="no prompts of its own for the row prompt"):
        named.rows_named(["caa", "prompt"], ())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("Is it?\n (A) Yes", "(A)"), r"lacks the choices \(A\) and \(B\)"),
        (("Is it?\n (A) Yes\n (B) No", "(C)"), r"lacks the choices \(C\)"),
        (("Is it?\n (A) Yes\n (B)  ", "(A)"), "lacks the choices"),
    ],
)
def test_other_rows_are_refused(row, message, tmp_path):
    at = tmp_path / "pairs.json"
    at.write_text(json.dumps(rows([*ROWS, row])))
    with pytest.raises(ValueError, match=message):
        benchmarks.ABBehaviour.read(at)
    with pytest.raises(ValueError, match="is none of coordinate"):
        benchmarks.ABBehaviour.read_caa(tmp_path, "kindness")


@torch.no_grad()
def log_p(model, prompt, answer):
    start = tokenise(model, prompt, prepend_bos=False).tokens.shape[1]
    row = tokenise(model, prompt + answer, prepend_bos=False).tokens
    of = model(row, return_type="logits")[0].double().log_softmax(-1)
    return [float(of[i - 1, row[0, i]]) for i in range(start, row.shape[1])]


@without_shape_checks()
def test_both_measures_by_hand_and_a_whole_run(folder):
    model, read = ot.load_demo().model, benchmarks.ABBehaviour.read_caa(folder, "refusal", by="text")
    found = benchmarks.run(
        model, read, {"CAA": ot.CAA}, layer=2, kl=0.1, prompts=2, max_new_tokens=3, prepend_bos=False
    )
    plain, caa = found.rows
    for number, pair in enumerate(read.test):
        letters = [sum(log_p(model, f"{pair.question}\n\nAnswer:", f" ({one}")) for one in pair.letters]
        words = [log_p(model, f"{pair.bare}\n\nAnswer:", f" {one}") for one in pair.words]
        p = torch.tensor(letters).softmax(0)[0], torch.tensor([sum(w) / len(w) for w in words]).softmax(0)[0]
        assert plain.scores["letters"][number] == pytest.approx(float(p[0]), abs=1e-5)
        assert plain.scores["text"][number] == pytest.approx(float(p[1]), abs=1e-5)
    assert caa.at[0]["position"] == "mean" and caa.scores["text"] != plain.scores["text"]
    assert "text − unsteered" in found.table() and "ab_refusal" in found.notes()
