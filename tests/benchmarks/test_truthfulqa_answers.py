"""TruthfulQA's own answers and open-ended A/B: measures by hand, with judges of words and a language model."""

import json
import threading

import pytest
import torch
import transformers
from instances import without_shape_checks
from models import hugging_face, load

import odesteer_tl as ot
from odesteer_tl import benchmarks
from odesteer_tl.benchmarks.answers import AnswerScorer
from odesteer_tl.benchmarks.applied import UNCHANGED
from odesteer_tl.benchmarks.samples import sampled
from odesteer_tl.benchmarks.truthfulqa import Item, few_shot
from odesteer_tl.benchmarks.truthfulqa_answers import closer

HEAD = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
FEW = dict(layer=2, kl=0.1, prompts=1, max_new_tokens=2, prepend_bos=False)


@pytest.fixture(scope="module")
def model():
    return ot.load_demo().model


@pytest.fixture
def file(tmp_path):
    rows = "".join(f'A,B,Is {i} a number?,"Yes, {i} is","Yes, {i} is; Yes","No; Never",x\n' for i in range(6))
    at = tmp_path / "qa.csv"
    at.write_text(HEAD + rows)
    return at


def test_an_answer_is_closer_to_what_shares_its_words():
    item = Item("Can cows fly?", ("No, they cannot", "They walk"), ("Yes, they can", "Only at night"))
    found = [closer(item, text) for text in ("They cannot.", "yes THEY can", "only at night", "purple", "", "they")]
    assert found == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]  # "they" is half of "They walk"


@without_shape_checks()
def test_true_and_info_by_hand(model, file):
    truth, info = benchmarks.KeywordJudge(("the", "of")), benchmarks.KeywordJudge(("it", "and"))
    how, asked = benchmarks.Sampling(samples=2, max_new_tokens=8), []

    def noted(texts):
        asked.extend(texts)
        return truth(texts)

    read = benchmarks.TruthfulQA.read(file, truth=noted, info=info, sampling=how)
    assert read.measures == ("true_info", "true", "info", "closer") and read.primary == "true_info"
    found = benchmarks.run(model, read, {"CAA": ot.CAA}, seeds=(0,), **FEW)
    plain, caa = found.rows
    tested = [item for fold in read.folds() for item in fold.test]
    texts = [
        sampled(model, [few_shot(item.question) for item in fold.test], UNCHANGED, how, 0, False).texts
        for fold in read.folds()
    ]
    for number, item in enumerate(tested):
        own = [*texts[0], *texts[1]][2 * number : 2 * number + 2]
        answers = [text.split("\n\n")[0].split("\nQ:")[0].split("\nA:")[0].strip() for text in own]
        judged = [f"Q: {item.question}\nA: {answer}" for answer in answers]
        assert set(judged) <= set(asked)
        true, informs = truth(judged), info(judged)
        assert plain.scores["true"][number] == float(true.mean())
        assert plain.scores["true_info"][number] == float((true * informs).mean())
        assert plain.scores["closer"][number] == sum(closer(item, answer) for answer in answers) / 2
    assert 0 < plain.mean("true_info") < 1 and caa.scores != plain.scores
    assert set(caa.guardrails) == {"perplexity", "Dist-1", "Dist-2", "Dist-3"}
    assert benchmarks.TruthfulQA.read(file).measures == ("closer",)
    assert benchmarks.TruthfulQA.read(file, truth=truth).measures == ("true", "closer")
    with pytest.raises(ValueError, match="give truth= too"):
        benchmarks.TruthfulQA.read(file, info=info)


@without_shape_checks()
def test_open_answers_to_a_behaviours_questions_by_hand(model, tmp_path, monkeypatch):
    pairs, at = [], tmp_path / "own.json"
    for i in range(4):
        question = f"Is film {i} good?\n\nChoices:\n (A) Yes, it is\n (B) No, never"
        pairs.append({"question": question, "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"})
    at.write_text(json.dumps(pairs))

    def length(texts):
        return torch.tensor([float(len(text)) for text in texts])

    how = benchmarks.Sampling(samples=2, max_new_tokens=3)
    read = benchmarks.ABBehaviour.read(at, by="text", judge=length, sampling=how)
    assert read.samples and read.measures == ("letters", "text", "open")
    found = benchmarks.run(model, read, {}, seeds=(0,), **FEW)
    prompts = [f"{pair.bare}\n\nAnswer:" for pair in read.folds()[0].test]
    texts = sampled(model, prompts, UNCHANGED, how, 0, False).texts
    expected = [(len(a) + len(b)) / 2 + len(p) for p, a, b in zip(prompts, texts[::2], texts[1::2], strict=True)]
    assert found.rows[0].scores["open"][: len(prompts)] == pytest.approx(expected)
    asked, real = [], AnswerScorer.scores
    monkeypatch.setattr(AnswerScorer, "scores", lambda *given: asked.append(given) or real(*given))
    benchmarks.run(model, read, {}, seeds=(0, 1), **FEW)
    assert len(asked) == 2 * 2  # letters and text of two folds, and not of every seed
    alone = benchmarks.ABBehaviour.read(at, by="text")
    assert alone.measures == ("letters", "text") and not alone.samples


def test_a_language_model_judges_by_its_next_token():
    model = load("huggingface", "llama")
    judge = benchmarks.LanguageModelJudge(model, "tiny", "{text} it is", (" good", " bad"), batch_size=2)
    texts = ["the film", "a plot was good and dull", "it"]
    yes, no = (model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("good", "bad"))
    expected, plain = [], hugging_face("llama")
    for text in texts:
        ids = model.tokenizer(f"{text} it is", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            p = plain(ids).logits[0, -1].double().softmax(-1)
        expected.append(float(p[yes] / (p[yes] + p[no])))
    assert yes != no and judge(texts).tolist() == pytest.approx(expected, abs=1e-5)
    assert judge([]).shape == (0,)
    said = judge.record()
    assert (said["judge"], said["template"], said["answers"]) == ("tiny", "{text} it is", [" good", " bad"])
    other = benchmarks.LanguageModelJudge(load("huggingface", "gpt2"), "tiny", "{text} it is", (" good", " bad"))
    assert said["dtype"] == "float32" and said["weights"] != other.record()["weights"]
    for template, answers, words in (
        ("it is", (" good", " bad"), "holds {text} once"),
        ("{text} it is", (" good", " good film"), "begin with the same token"),
        ("{text} it is", (" good", ""), "end the template before the space"),
        ("{text} it i", ("s good", " bad"), "end the template before the space"),
    ):
        with pytest.raises(ValueError, match=words):
            benchmarks.LanguageModelJudge(model, "tiny", template, answers)


def test_a_judge_of_another_kind_and_one_that_cannot_be_compared_are_told(model, file, tmp_path):
    folder = tmp_path / "classifier"
    config = hugging_face("llama").config
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)
    load("huggingface", "llama").tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"lacks lm_head\.weight, which would be random: it is no language model"):
        benchmarks.LanguageModelJudge.load(folder, "{text} it is")
    lock = threading.Lock()

    def truth(texts):
        with lock:
            return [0.5] * len(texts)

    read = benchmarks.TruthfulQA.read(file, truth=truth, sampling=benchmarks.Sampling(samples=1, max_new_tokens=2))
    with without_shape_checks():
        benchmarks.run(model, read, {}, out=tmp_path / "out", seeds=(0,), **FEW)
        with pytest.warns(UserWarning, match=r"cannot be compared.*closure lock \(lock\) of the judge truth="):
            benchmarks.run(model, read, {}, out=tmp_path / "out", seeds=(0,), **FEW)
