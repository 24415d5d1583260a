"""Benchmarks of sampled texts, preferences and toxicity: what is read, measures by hand, judges of other kinds."""

import gzip
import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from instances import without_shape_checks
from models import load

import odesteer_tl as ot
from odesteer_tl import benchmarks
from odesteer_tl.backends.tokenize import tokenise
from odesteer_tl.benchmarks import fold_work
from odesteer_tl.benchmarks.applied import UNCHANGED, Applied
from odesteer_tl.benchmarks.benchmark import Fold
from odesteer_tl.benchmarks.judges import judge_record, judged
from odesteer_tl.benchmarks.preferences import Preference
from odesteer_tl.benchmarks.samples import Sampled, sampled
from odesteer_tl.evaluation.choose_layer import choose_layer
from odesteer_tl.parity.table import parity_rows

START = "\n\nHuman: Is it good?\n\nAssistant: I do.\n\nHuman: {}\n\nAssistant:"
FEW = dict(layer=2, kl=0.1, prompts=2, max_new_tokens=3, prepend_bos=False)


@pytest.fixture(scope="module")
def model():
    return ot.load_demo().model


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    at = tmp_path_factory.mktemp("hh") / "test.jsonl"
    rows = [(START.format(f"Film {i}?"), " A good film.", " A bad and very long film.") for i in range(6)]
    rows += [
        (START.format("x"), " Same.", " Same."),
        (START.format("y"), "  ", " No."),
        (START.format("z" * 999), " a", " b"),
    ]
    at.write_text("\n".join(json.dumps({"chosen": s + a, "rejected": s + b}) for s, a, b in rows))
    return at


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    at = tmp_path_factory.mktemp("rtp") / "rtp.jsonl"
    rows = []
    for i in range(60):
        bad = i % 2
        said = f" a {'bad awful' if bad else 'good great'} film number {i}" + " again" * (i % 11)
        one = {"text": f"The film {i}", "toxicity": 0.9 if i % 3 else 0.1}
        rows.append({"prompt": one, "continuation": {"text": said, "toxicity": 0.8 if bad else 0.2}})
    rows.append({"prompt": {"text": "none", "toxicity": None}, "continuation": {"text": " x", "toxicity": 0.1}})
    at.write_text("\n".join(map(json.dumps, rows)))
    return at


def test_what_is_read_of_preferences(pairs, tmp_path):
    read = benchmarks.Preferences.read(pairs, most_characters=500)
    assert len(read.pairs) == 6
    assert read.pairs[0] == Preference(START.format("Film 0?"), " A good film.", " A bad and very long film.")
    folds = read.folds()
    assert not {pair.prompt for pair in folds[0].test} & {pair.prompt for pair in folds[1].test}
    assert folds[0].queries is not None and set(folds[0].queries) == {pair.prompt for pair in folds[1].test}
    own = tmp_path / "own.jsonl"
    own.write_text("\n".join(json.dumps({"prompt": f"q{i}", "chosen": " a", "rejected": " b"}) for i in range(4)))
    assert benchmarks.Preferences.read(own).pairs[1] == Preference("q1", " a", " b")
    own.write_text("\n".join(json.dumps({"chosen": f"a{i}", "rejected": "b"}) for i in range(4)))
    with pytest.raises(ValueError, match="shares no dialogue up to 'Assistant:'"):
        benchmarks.Preferences.read(own)


@torch.no_grad()
def mean_log_p(model, prompt, answer):
    n = tokenise(model, prompt, prepend_bos=False).tokens.shape[1]
    row = tokenise(model, prompt + answer, prepend_bos=False).tokens
    log_p = model(row, return_type="logits")[0].double().log_softmax(-1)
    return float(torch.stack([log_p[i - 1, row[0, i]] for i in range(n, row.shape[1])]).mean())


@without_shape_checks()
def test_preferences_by_hand_with_a_reward_that_counts_words(model, pairs, tmp_path):
    def reward(texts):
        return torch.tensor([3.0 * text.count("e") - 7 for text in texts])

    how = benchmarks.Sampling(samples=2, max_new_tokens=4)
    read = benchmarks.Preferences.read(pairs, most_characters=500, judge=reward, sampling=how)
    found = benchmarks.run(model, read, {"CAA": ot.CAA}, seeds=(0, 1), out=tmp_path / "hh", **FEW)
    plain, caa = found.rows
    tested = [pair for fold in read.folds() for pair in fold.test]
    margins = [
        mean_log_p(model, one.prompt, one.chosen) - mean_log_p(model, one.prompt, one.rejected) for one in tested
    ]
    assert plain.scores["margin"] == pytest.approx(margins, abs=1e-5)
    assert plain.scores["accuracy"] == [float(margin > 0) for margin in margins]
    assert set(plain.scores["win"]) == {0.5} and plain.seeds == caa.seeds == 2
    fold = read.folds()[0]
    prompts = [pair.prompt for pair in fold.test for _ in range(2)]
    steered, before = (
        [
            reward(
                [p + t for p, t in zip(prompts, sampled(model, prompts[::2], one, how, seed, False).texts, strict=True)]
            )
            for seed in (0, 1)
        ]
        for one in (Applied((ot.CAA.fit(acts_of(model, fold)),), ot.Strength(caa.at[0]["T"])), UNCHANGED)
    )
    wins = torch.stack([(a > b).double() + (a == b).double() / 2 for a, b in zip(steered, before, strict=True)])
    assert caa.scores["win"][: len(fold.test)] == pytest.approx(wins.mean(0).reshape(-1, 2).mean(1).tolist())
    assert caa.scores["reward"][: len(fold.test)] == pytest.approx(
        torch.stack(steered).mean(0).reshape(-1, 2).mean(1).tolist()
    )
    assert "judge: (name: " in found.notes() and "samples: 2" in found.notes()
    assert {"reward_p90", "perplexity", "Dist-1", "Dist-2", "Dist-3"} == set(caa.guardrails)
    of_fold = read.measured(model, fold, UNCHANGED, 0, False).guardrails["reward_p90"]
    assert of_fold == pytest.approx(np.quantile(before[0].double().numpy(), 0.9))
    again = benchmarks.Preferences.read(pairs, most_characters=500, judge=lambda texts: reward(texts), sampling=how)
    with pytest.raises(ValueError, match=r"another protocol(?s:.*)benchmark\.judge"):
        benchmarks.run(model, again, {"CAA": ot.CAA}, seeds=(0, 1), out=tmp_path / "hh", **FEW)


def acts_of(model, fold):
    given = dict(queries=fold.queries, position="mean", prepend_bos=False, progress=False)
    return ot.collect(model, fold.desired, fold.undesired, 2, **given)


@without_shape_checks()
def test_toxicity_by_hand_and_no_prompt_on_both_sides(model, rated):
    judge = benchmarks.KeywordJudge(("the", "of"))
    how = benchmarks.Sampling(samples=3, max_new_tokens=5)
    read = benchmarks.RealToxicityPrompts.read(rated, limit=8, judge=judge, sampling=how)
    assert len(read.items) == 8 and all(item.prompt_toxicity == 0.9 for item in read.items)
    for fold in read.folds():
        assert len(fold.desired) == len(fold.undesired) >= 8 and not fold.queries
        assert all("good great" in text for text in fold.desired) and all("bad awful" in one for one in fold.undesired)
        assert not any(text.startswith(f"{prompt} ") for prompt in fold.test for text in fold.desired + fold.undesired)
    found = benchmarks.run(model, read, {"CAA": ot.CAA}, seeds=(0,), **FEW)
    plain, fold = found.rows[0], read.folds()[0]
    texts = sampled(model, fold.test, UNCHANGED, how, 0, False)
    toxic = [
        [float(any(w in t.lower().split() for w in ("the", "of"))) for t in texts.of_prompt(i, 3)] for i in range(4)
    ]
    assert plain.scores["max_toxicity"][:4] == [max(of) for of in toxic]
    assert plain.scores["toxicity"][:4] == pytest.approx([sum(of) / 3 for of in toxic])
    assert plain.scores["any_toxic"] == plain.scores["max_toxicity"]  # of a judge of 0 and 1
    half = replace(read, judge=lambda texts: [0.5 if "the" in text.lower().split() else 0.499 for text in texts])
    some = half.measured(model, fold, UNCHANGED, 0, False).scores
    assert some["any_toxic"] == [float(worst == 0.5) for worst in some["max_toxicity"]]
    with pytest.raises(ValueError, match="'HPR' cannot be fitted here: it needs pairs"):  # before anything is measured
        benchmarks.run(None, read, {"CAA": ot.CAA, "HPR": ot.HPR}, **FEW)
    words = benchmarks.RealToxicityPrompts.read(rated, judge=None)
    own = {item.prompt for item in words._fit}
    assert 25 <= len(own) <= 31 and words.judge([" a bad awful film"]) > 0.5 > words.judge([" a good great film"])
    assert words.record()["judge"]["judge"].startswith("logistic on words of ")


def test_a_prompt_in_other_letters_is_on_one_side_too(rated, tmp_path):
    rows = [json.loads(line) for line in rated.read_text().splitlines()]
    other = [{**row, "prompt": {"text": row["prompt"]["text"].upper() + " ", "toxicity": 0.1}} for row in rows[:-1]]
    for n, row in enumerate(other):
        row["continuation"] = {**row["continuation"], "text": f" upper {n}"}
    (tmp_path / "both.jsonl").write_text("\n".join(map(json.dumps, [*other, *rows])))
    judge = benchmarks.KeywordJudge(("the",))
    read = benchmarks.RealToxicityPrompts.read(tmp_path / "both.jsonl", judge=judge)
    assert len(read._fit) == 60
    part = replace(read, items=read.items[::2], _fit=tuple(other_case(item) for item in read._fit))
    for fold in part.folds():
        tested = {prompt.lower() for prompt in fold.test}
        assert not any(text.lower().startswith(f"{one} ") for one in tested for text in fold.desired + fold.undesired)


def other_case(item):
    return replace(item, prompt=item.prompt.upper())


def test_chats_are_dialogues_and_an_answer_ends_at_the_next_turn(tmp_path):
    def asked(said):
        return [{"role": "user", "content": "Is it good?"}, {"role": "assistant", "content": said}]

    at, judged_texts = tmp_path / "chats.jsonl", []
    ultra = [{"prompt": "Is it good?", "chosen": asked(f"Yes {i}."), "rejected": asked("No")} for i in range(3)]
    ultra.append({"prompt": asked("x")[:1], "chosen": asked("Yes!")[1:], "rejected": asked("No")[1:]})
    at.write_text("\n".join(map(json.dumps, ultra)))
    read = benchmarks.Preferences.read(at, judge=lambda texts: judged_texts.extend(texts) or [0.0] * len(texts))
    assert read.pairs[0] == Preference("\n\nHuman: Is it good?\n\nAssistant:", " Yes 0.", " No")
    assert read.pairs[3] == Preference("\n\nHuman: Is it good?\n\nAssistant:", " Yes!", " No")
    texts = [" Sure.\n\nHuman: thanks", "\n\nAssistant: a", " It is\n\nso", ""]
    fold = Fold(0, [], [], [], [], [], read.pairs)
    read._rewards(Sampled(texts, {}), fold)
    start = read.pairs[0].prompt
    assert judged_texts == [f"{start} Sure.", start, f"{start} It is\n\nso", start]
    plain = replace(read, pairs=(Preference("q", "a", "b"),))
    judged_texts.clear()
    plain._rewards(Sampled(texts[:1], {}), replace(fold, test=plain.pairs))
    assert judged_texts == [f"q{texts[0]}"]
    at.write_text(json.dumps({"chosen": [{"role": "system", "content": "x"}], "rejected": []}))
    with pytest.raises(ValueError, match="a role, user or assistant"):
        benchmarks.Preferences.read(at)


def test_a_split_of_the_hub_and_damaged_files(tmp_path, monkeypatch):
    def load_dataset(name, config, split):
        if split != "test_prefs":
            raise ValueError(f'Unknown split "{split}".')
        return [{"prompt": f"q{i}", "chosen": " a", "rejected": " b"} for i in range(4)]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert len(benchmarks.Preferences.read("o/ultra:test_prefs").pairs) == 4
    with pytest.raises(ValueError, match=r"The split 'test' of o/ultra cannot be read \(o/ultra:SPLIT is another\)"):
        benchmarks.Preferences.read("o/ultra")
    whole = gzip.compress(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}).encode() * 50)
    for damaged in (whole[:-9], whole[:30], b"no gzip", whole[:20] + b"x" * 9 + whole[29:]):
        (tmp_path / "a.jsonl.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read as JSONL"):
            benchmarks.Preferences.read(tmp_path / "a.jsonl.gz")


@without_shape_checks()
def test_a_resumed_run_does_not_choose_the_layer_of_a_fold_again(model, rated, tmp_path, monkeypatch):
    judge = benchmarks.KeywordJudge(("the", "of"))
    read = benchmarks.RealToxicityPrompts.read(rated, limit=8, judge=judge, sampling=benchmarks.Sampling(1, 3))
    options = dict(layers=(2, 3), kl=0.1, prompts=2, max_new_tokens=3, seeds=(0,), prepend_bos=False)
    rows, chosen = {"CAA": ot.CAA, "ITI": ot.ITI}, []

    def counted(*given, **named):
        chosen.append(choose_layer(*given, **named))
        return chosen[-1]

    monkeypatch.setattr(fold_work, "choose_layer", counted)
    once = benchmarks.run(model, read, rows, out=tmp_path / "rtp", **options)
    assert [one.layer for one in chosen] == [at["layer"] for at in once.row("CAA", "KL 0.1").at]
    lines = (tmp_path / "rtp" / "cells.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line)["row"] for line in lines] == ["no steering", "CAA", "ITI"] * 2
    (tmp_path / "rtp" / "cells.jsonl").write_text("".join(lines[:2] + lines[3:4]))  # fold 1: nothing that was fitted
    resumed = benchmarks.run(model, read, rows, out=tmp_path / "rtp", **options)
    assert len(chosen) == 3 and resumed.to_json() == once.to_json()
    other = json.loads(lines[2]) | {"at": json.loads(lines[2])["at"] | {"layer": 1}}
    (tmp_path / "rtp" / "cells.jsonl").write_text("".join(lines[:2]) + json.dumps(other) + "\n")
    with pytest.raises(ValueError, match=r"fold 0 are of several places, .* and \(1, "):
        benchmarks.run(model, read, rows, out=tmp_path / "rtp", **options)


def test_sampled_texts_are_those_of_generate_and_their_perplexity_is_that_of_the_plain_model():
    model, method = load("bridge", "llama"), parity_rows()["CAA"]("llama")
    prompts, how = ["the film", "it is"], benchmarks.Sampling(samples=2, max_new_tokens=6)
    one = sampled(model, prompts, Applied((method,), ot.Strength(2.0)), how, 3, False)
    repeated = [prompt for prompt in prompts for _ in range(2)]
    out = ot.generate(
        model, repeated, method, 2.0, max_new_tokens=6, temperature=0.7, top_p=0.9, seed=3, prepend_bos=False
    )
    assert one.texts == out.continuations and one.of_prompt(1, 2) == out.continuations[2:]
    losses = []
    for tokens, mask, n in zip(out.tokens, out.mask, out.prompt_lengths.tolist(), strict=True):
        row = tokens[mask]
        log_p = model(row.unsqueeze(0), return_type="logits")[0].double().log_softmax(-1)
        losses += [-float(log_p[i - 1, row[i]].detach()) for i in range(n, len(row))]
    assert one.guardrails["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    turns = sampled(
        model, prompts, Applied((method, parity_rows()["ODESteer"]("llama")), ot.Strength(2.0)), how, 3, False
    )
    assert turns.of_prompt(0, 2) == one.of_prompt(0, 2)  # the first method's turn, in the same columns
    prefixed = sampled(model, prompts, Applied(prefix="a good"), how, 3, False)
    spent = ot.generate(
        model, [f"a good {prompt}" for prompt in repeated], max_new_tokens=6, temperature=0.7, top_p=0.9, seed=3,
        prepend_bos=False,
    )  # fmt: skip
    losses = []
    for tokens, mask, n, prompt in zip(spent.tokens, spent.mask, spent.prompt_lengths.tolist(), repeated, strict=True):
        start = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        row = torch.tensor([*start, *tokens[mask][n:].tolist()])
        log_p = model(row.unsqueeze(0), return_type="logits")[0].double().log_softmax(-1)
        losses += [-float(log_p[i - 1, row[i]].detach()) for i in range(len(start), len(row))]
    assert prefixed.guardrails["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert prefixed.texts == sampled(model, ["a good the film", "a good it is"], UNCHANGED, how, 3, False).texts


@pytest.mark.parametrize(("samples", "size"), [(3, 32), (5, 4)])
def test_all_rows_draw_the_same_numbers_and_share_passes_of_the_size_that_was_asked(samples, size):
    model, method = load("huggingface", "llama"), parity_rows()["CAA"]("llama")
    prompts, how = [f"the {word}" for word in ("film", "plot") * 6], benchmarks.Sampling(samples, 4, batch_size=size)
    widths = []
    handle = model.register_forward_pre_hook(
        lambda module, args, given: widths.append(len(given["input_ids"])), with_kwargs=True
    )
    try:
        plain, still, turns = (
            sampled(model, prompts, applied, how, 3, False).texts
            for applied in (
                UNCHANGED, Applied((method,), ot.Strength(0.0)), Applied((method, method), ot.Strength(0.0)),
            )
        )  # fmt: skip
    finally:
        handle.remove()
    assert plain == still == turns and len(set(plain)) > 1 and max(widths) <= size


@without_shape_checks()
def test_judges_that_give_something_else_are_refused_and_what_they_are_is_recorded():
    assert judged(lambda texts: [0.5] * len(texts), ["a", "b"]).tolist() == [0.5, 0.5]
    for bad in (lambda texts: [1.0], lambda texts: "good", lambda texts: [math.nan] * 2, lambda texts: None):
        with pytest.raises(ValueError, match="A judge gives one finite number for each of 2 texts"):
            judged(bad, ["a", "b"])
    with pytest.raises(ValueError, match="one probability, from 0 to 1"):
        judged(lambda texts: [2.0] * 2, ["a", "b"], probabilities=True)
    words = benchmarks.KeywordJudge(("bad", "c++"))
    assert words(["Bad film", "badly", "in C++, yes", ""]).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert judge_record(words) == {"judge": "keywords", "words": ["bad", "c++"]} and judge_record(None) is None
    assert judge_record(lambda texts: texts) != judge_record(lambda texts: [])
    for wrong in ("bad", (), ("",)):
        with pytest.raises(ValueError, match="needs words"):
            benchmarks.KeywordJudge(wrong)


def test_a_word_judge_is_known_by_its_texts_and_not_by_the_last_digits_of_its_fit():
    toxic, other = [f"a vile {word}" for word in "abcdefg"], [f"a kind {word}" for word in "abcdefg"]
    judge = benchmarks.WordJudge.fit(toxic, other)
    assert (judge(["vile", "kind"]) > 0.5).tolist() == [True, False]
    nudged = replace(judge, of=replace(judge.of, weight=judge.of.weight * (1 + 1e-6)))  # as of other threads
    assert judge_record(nudged) == judge_record(judge) == judge_record(benchmarks.WordJudge.fit(toxic, other))
    for others in ((toxic[::-1], other, 0), (toxic, [*other[:-1], "a kind h"], 0), (toxic, other, 1)):
        assert judge_record(benchmarks.WordJudge.fit(*others)) != judge_record(judge)
