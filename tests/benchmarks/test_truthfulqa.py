"""TruthfulQA MC and the frame of benchmarks: scores by hand, folds without leaks, resumed runs, tables."""

import json

import pytest
import torch
from instances import without_shape_checks

import odesteer_tl as ot
from odesteer_tl import benchmarks
from odesteer_tl.backends.tokenize import tokenise
from odesteer_tl.benchmarks.answers import AnswerScores
from odesteer_tl.benchmarks.benchmark import halves, some
from odesteer_tl.benchmarks.result import BenchmarkRow
from odesteer_tl.benchmarks.truthfulqa import Item, few_shot, mc
from odesteer_tl.evaluation.entries import Prompted

HEAD = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
ROWS = [
    ("What is the capital of France?", "Paris", "Paris; The city of Paris", "Lyon; Nice"),
    ("Can cows fly?", "No", "No; Cows cannot fly;No", "Yes; At night"),
    ("Is the moon made of cheese?", "No, of rock", "It is rock", "Yes, of cheese"),
    ("who wrote hamlet", "Shakespeare", "Shakespeare; William Shakespeare", "Marlowe; Bacon; A cat"),
    ("Who  wrote Hamlet", "Shakespeare", "Shakespeare", "Marlowe"),
    ("How long is a day?", "24 hours", "24 hours; A day", "3 hours; 5 hours"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    at = tmp_path_factory.mktemp("qa") / "qa.csv"
    at.write_text(HEAD + "".join(f'A,B,{q},"{b}","{r}","{w}",x\n' for q, b, r, w in ROWS), encoding="utf-8-sig")
    return at


@pytest.fixture(scope="module")
def model():
    return ot.load_demo().model


def lay_out_as_on_the_hub(rows, folder):
    """The repository of the data set: two configurations with one split each, the other one without these fields."""
    folder.mkdir(parents=True)
    parts = {"generation": '{"question": "q", "type": "t"}\n', "multiple_choice": rows.read_text()}
    listed = []
    for name, text in parts.items():
        (folder / f"{name}.jsonl").write_text(text)
        listed.append(f"- config_name: {name}\n  data_files:\n  - split: validation\n    path: {name}.jsonl\n")
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(listed)}---\n")


def test_a_csv_and_the_hubs_form_hold_the_same_items(file, tmp_path, monkeypatch):
    read = benchmarks.TruthfulQAMC.read(file)
    assert read.items[0] == Item(ROWS[0][0], ("Paris", "The city of Paris"), ("Lyon", "Nice"))
    assert read.items[1].right == ("No", "Cows cannot fly") and read.items[2].right == ("No, of rock", "It is rock")
    rows = [
        {
            "question": one.question,
            "mc1_targets": {"choices": [one.right[0], *one.wrong], "labels": [1] + [0] * len(one.wrong)},
            "mc2_targets": {
                "choices": [*one.right, *one.wrong],
                "labels": [1] * len(one.right) + [0] * len(one.wrong),
            },
        }
        for one in read.items
    ]
    other = tmp_path / "qa.jsonl"
    other.write_text("\n".join(map(json.dumps, rows)))
    assert benchmarks.TruthfulQAMC.read(other).items == read.items
    lay_out_as_on_the_hub(other, tmp_path / "truthfulqa" / "truthful_qa")
    monkeypatch.chdir(tmp_path)  # where `datasets` looks before it asks the Hub
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert benchmarks.TruthfulQAMC.read("truthfulqa/truthful_qa").items == read.items


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "holds no list of rows"),
        (HEAD + "A,B,q,b,r,,x\n" * 4, "no text in 'Incorrect Answers'"),
        ("a,b\n1,2\n", "no text in 'Question'; its fields are a, b"),
        (HEAD + 'A,B,q,b,r,"; ",x\n', "has no wrong answers"),
        (HEAD + "A,B,q,b,r,w,x\n" * 3, "needs four items"),
    ],
)
def test_other_data_are_refused(text, message, tmp_path):
    at = tmp_path / "other.csv"
    at.write_text(text)
    with pytest.raises(ValueError, match=message):
        benchmarks.TruthfulQAMC.read(at)
    with pytest.raises(ValueError, match="is no file, and no name"):
        benchmarks.TruthfulQAMC.read("nowhere.csv")


def test_mc_by_hand():
    scores = AnswerScores(torch.tensor([-2.0, -3.0, -2.5, -9.0]).double(), torch.ones(4, dtype=torch.long))
    one, two = mc(Item("q", ("a", "b"), ("c", "d")), scores)
    p = [2.718281828459045**x for x in (-2.0, -3.0, -2.5, -9.0)]
    assert one == 1.0 and two == pytest.approx((p[0] + p[1]) / sum(p))
    assert mc(Item("q", ("a",), ("b", "c", "d")), AnswerScores(scores.sums[[1, 0, 2, 3]], scores.tokens))[0] == 0.0


def test_no_question_is_on_both_sides_and_each_is_tested_once(file):
    mc_of = benchmarks.TruthfulQAMC.read(file)
    folds = mc_of.folds()
    tested = [item.question for fold in folds for item in fold.test]
    assert sorted(tested) == sorted(item.question for item in mc_of.items)
    for fold in folds:
        asked = {query.split("\n")[0].lower().replace(" ", "") for query in fold.queries or ()}
        assert not asked & {f"q:{item.question}".lower().replace(" ", "") for item in fold.test}
        assert len(fold.desired) == len(fold.undesired) == len(fold.queries or ())
        assert all(prompt.startswith("Q: What is human life") for prompt in (*fold.prompts, *fold.test_prompts))
    for seed in range(6):
        side, _ = halves(["Why?", "How?", "where", " why? ", "WHERE", "who"], seed)[0]
        assert (0 in side) == (3 in side) and (2 in side) == (4 in side)
    numbers = [f"{i}" for i in range(10)]
    assert halves(numbers, 42)[0] == halves(numbers, 42)[1][::-1] != halves(numbers, 1)[0]
    with pytest.raises(ValueError, match="the same question or prompt"):
        halves(["Why?", " why? "], 0)
    assert some(range(20), 5, 0) == some(range(20), 5, 0) and len(some(range(20), 5, 1)) == 5


@torch.no_grad()
def by_hand(model, item):
    """MC2 of the unsteered model, one row at a time."""
    found = []
    for answer in (*item.right, *item.wrong):
        tokens = [tokenise(model, text, prepend_bos=False).tokens for text in (few_shot(item.question), " " + answer)]
        row = torch.cat(tokens, 1)
        log_p = model(row, return_type="logits")[0].double().log_softmax(-1)
        n = tokens[0].shape[1]
        found.append(log_p[torch.arange(n - 1, row.shape[1] - 1), row[0, n:]].sum())
    p = torch.stack(found).exp()
    return float(p[: len(item.right)].sum() / p.sum())


@without_shape_checks()
def test_a_run_that_was_stopped_gives_the_same_table_and_another_protocol_is_refused(file, model, tmp_path):
    mc_of = benchmarks.TruthfulQAMC.read(file)
    rows = {name: benchmarks.baselines(("Answer truthfully.",))[name] for name in ("prompt only", "random direction")}
    options = dict(layer=2, kl=0.1, T={"CAA": 0.5}, seeds=(0, 1), prompts=1, max_new_tokens=3, prepend_bos=False)
    said = []

    def stops(text):
        said.append(text)
        if len(said) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmarks.run(model, mc_of, rows | {"CAA": ot.CAA}, out=tmp_path / "a", progress=stops, **options)
    assert (tmp_path / "a" / "cells.jsonl").read_text().count("\n") == 6
    resumed = benchmarks.run(model, mc_of, rows | {"CAA": ot.CAA}, out=tmp_path / "a", progress=said.append, **options)
    assert len(said) == 7 + 12 - 6
    once = benchmarks.run(model, mc_of, rows | {"CAA": ot.CAA}, out=tmp_path / "b", **options)
    assert str(resumed) == str(once) and resumed.to_json() == once.to_json()
    assert (tmp_path / "a" / "table.md").read_text() == f"{once}\n"
    kept = json.loads((tmp_path / "b" / "result.json").read_text())
    assert kept["protocol"]["model"]["weights"] and kept["protocol"]["benchmark"]["questions"] == 6
    with pytest.raises(ValueError, match=r"another protocol(?s:.*)seeds: \[0, 1\] in the folder, \[0\] now"):
        benchmarks.run(model, mc_of, rows | {"CAA": ot.CAA}, out=tmp_path / "a", **options | {"seeds": (0,)})
    assert [(row.name, row.level, row.seeds) for row in once.rows] == [
        ("no steering", "", 1), ("prompt only", "KL 0.1", 1), ("random direction", "KL 0.1", 2), ("CAA", "KL 0.1", 1),
        ("CAA", "T 0.5", 1),
    ]  # fmt: skip
    plain, random, caa = once.rows[0], once.rows[2], once.rows[3]
    tested = [item for fold in mc_of.folds() for item in fold.test]
    assert plain.scores["MC2"] == pytest.approx([by_hand(model, item) for item in tested], abs=1e-5)
    assert random.reached and all(abs(at["kl_fit"] / 0.1 - 1) <= 0.05 for at in caa.at) and plain.kl == 0.0
    assert random.by_seed["MC2"][0] != random.by_seed["MC2"][1] and caa.scores["MC2"] != plain.scores["MC2"]
    mean, low, high = caa.minus(plain, "MC2")
    assert mean == pytest.approx(caa.mean("MC2") - plain.mean("MC2")) and low <= mean <= high
    assert once.row("CAA", "T 0.5").at[0]["T"] == 0.5
    with pytest.raises(KeyError, match="no row 'HPR'"):
        once.row("HPR")


@without_shape_checks()
def test_a_prompt_of_any_name_has_no_T(file, model):
    mc_of = benchmarks.TruthfulQAMC.read(file)
    options = dict(layer=2, kl=0.1, T=0.5, seeds=(0,), prompts=1, max_new_tokens=2, prepend_bos=False)
    found = benchmarks.run(model, mc_of, {"kind": Prompted(("Be kind.",)), "CAA": ot.CAA}, **options)
    assert [(row.name, row.level) for row in found.rows[1:]] == [
        ("kind", "KL 0.1"),
        ("CAA", "KL 0.1"),
        ("CAA", "T 0.5"),
    ]
    with pytest.raises(ValueError, match="'made' makes a Prompted, which has no T"):
        benchmarks.run(model, mc_of, {"made": lambda acts: Prompted(("Be kind.",))}, **options)


@without_shape_checks()
def test_what_a_method_keeps_between_calls_counts_and_what_was_fitted_before_is_named(file, model, tmp_path):
    mc_of, calls = benchmarks.TruthfulQAMC.read(file), []
    fitted = ot.CAA.fit(ot.collect(model, ["good"], ["bad"], 2, progress=False))

    def mine(acts):
        calls.append(len(acts.desired))
        return ot.CAA.fit(acts)

    options = dict(layer=2, kl=0.1, seeds=(0,), prompts=1, max_new_tokens=2, prepend_bos=False, out=tmp_path / "a")
    found = benchmarks.run(model, mc_of, {"mine": mine, "before": fitted}, **options)
    assert "not anew on each fold: before.\n" in f"{found}\n" and calls
    with pytest.raises(ValueError, match=r"__getstate__(?s:.*)rows.mine: not as in the folder \(closure method\)"):
        benchmarks.run(model, mc_of, {"mine": mine, "before": fitted}, **options)


def test_intervals_are_of_paired_differences():
    """Two rows that differ by .1 on every item differ by .1 in every draw, however far apart the items are."""
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0)).tolist()
    one, other = (
        BenchmarkRow("", "", 1, {"m": [own + more for own in scores]}, {"m": [0.0]}, 0.0, [], True, {})
        for more in (0.1, 0)
    )
    assert one.minus(other, "m") == pytest.approx((0.1, 0.1, 0.1))


@without_shape_checks()
def test_what_cannot_be_run_is_refused(file, model):
    mc_of = benchmarks.TruthfulQAMC.read(file)
    elsewhere = ot.collect(model, ["good", "better", "best"], ["bad", "worse", "worst"], 4, progress=False)
    for change, message in (
        ({"seeds": 3}, "seeds is a sequence"),
        ({"methods": {"no steering": ot.CAA}}, "without 'no steering'"),
        ({"kl": 0}, "above 0"),
        (
            {"T": {"CAA, one step": 1.0}, "methods": {"CAA": ot.CAA}},
            "T is given for 'CAA, one step'; .* have a T are CAA",
        ),
        ({"T": {"kind": 1.0}, "methods": {"kind": Prompted(("Be kind.",))}}, "T is given for 'kind'"),
        ({"T": 1.0, "methods": {"kind": Prompted(("Be kind.",))}}, "T is given for these rows.*none: prompts"),
        ({"layer": 2, "layers": (1, 3)}, "and not both"),
        ({"position": "all"}, "one token a text"),
        ({"methods": {"far": ot.CAA.fit(elsewhere)}, "layer": 2}, "fitted at layer 4, and this .*give layer=4"),
        ({"methods": {"none": lambda acts: None}, "layer": 2, "prompts": 1, "max_new_tokens": 1}, "returns a fitted"),
    ):
        with pytest.raises(ValueError, match=message):
            benchmarks.run(model, mc_of, **change)
