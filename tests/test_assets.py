"""The embedded default: the texts are what they claim to be, the judge can judge, the recipes run, the model loads."""

import collections
import gzip
import json
import re
from pathlib import Path

import make_model
import make_pairs
import make_texts
import pytest
import torch

from odesteer_tl import assets
from odesteer_tl.evaluation.judge import Judge

APP_WORDS = re.compile(r"\b(app|apps|whatsapp|reinstall|play store|latest update|statuses|this application)\b", re.I)


@pytest.fixture(scope="module")
def texts() -> dict[str, dict[str, list[str]]]:
    return assets.texts()


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load_embedded()


def every_text() -> list[str]:
    excerpts = [text for sides in assets.texts().values() for side in sides.values() for text in side]
    return excerpts + [str(review["text"]) for review in assets.heldout_reviews()]


def test_sizes_and_balance(texts):
    sizes = {role: {side: len(items) for side, items in sides.items()} for role, sides in texts.items()}
    assert sizes == {"fit": {"desired": 300, "undesired": 300}, "validation": {"desired": 100, "undesired": 100}}
    labels = collections.Counter(review["label"] for review in assets.heldout_reviews())
    assert labels == {0: 250, 1: 250}
    assert {role: len(items) for role, items in assets.prompts().items()} == {"test": 40, "validation": 24}


def test_excerpts_are_clean(texts):
    for sides in texts.values():
        for text in sides["desired"] + sides["undesired"]:
            assert len(text.split(" ")) == 60
            assert text == text.strip() and text.isprintable()
            assert not re.search(r"[<>]|&[a-z]+;|https?:", text)
            assert not make_texts.SLURS.search(text)


def test_no_text_has_two_roles(texts):
    def words(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.lower()))

    excerpts = [words(text) for sides in texts.values() for side in sides.values() for text in side]
    heldout = [words(str(review["text"])) for review in assets.heldout_reviews()]
    assert len(set(excerpts)) == 800 and len(set(heldout)) == 500
    # Compared by windows of 20 words, so that a review quoted with other punctuation would be found as well.
    held_windows = {w for review in heldout for w in windows(review)}
    assert not [text for text in excerpts if any(w in held_windows for w in windows(text))]
    prompts = [prompt for items in assets.prompts().values() for prompt in items]
    assert len({prompt.lower() for prompt in prompts}) == 64


def windows(text: str, length: int = 20) -> set[str]:
    parts = text.split()
    return {" ".join(parts[i : i + length]) for i in range(len(parts) - length + 1)}


def test_no_app_reviews():
    assert not [text for text in every_text() if APP_WORDS.search(text)]
    assert all(make_texts.is_film_review(str(review["text"])) for review in assets.heldout_reviews())


def test_app_reviews_are_recognised():
    assert not make_texts.is_film_review("Love this app. After the latest update I had to reinstall it on my phone.")
    assert not make_texts.is_film_review("Great service, I use it every day with my friends.")
    assert make_texts.is_film_review("A fine film that I watched on my birthday.")


def test_prompts_are_openings():
    for items in assets.prompts().values():
        for prompt in items:
            assert 2 <= len(prompt.split()) <= 12
            assert prompt == prompt.strip() and prompt[-1] not in ".!?"


def test_slurs_are_found():
    assert make_texts.SLURS.search("two Retards in a car") and not make_texts.SLURS.search("spicy food in Japan")


def test_judge_on_heldout_reviews(judge):
    assert judge.heldout_accuracy() >= 0.80
    assert 0.70 <= judge.heldout_accuracy(words=40) <= judge.heldout_accuracy()


def test_judge_orders_obvious_sentences(judge):
    rising = [
        "This was awful, the worst film I have ever seen, boring and a waste of time.",
        "The acting is weak and the story is dull.",
        "The film is about a man and his dog.",
        "A good film with great music.",
        "Excellent! A wonderful, perfect film, one of the best I have ever seen.",
    ]
    p = judge.positive_probability(rising)
    assert p.shape == (5,) and (p.diff() > 0.02).all()
    assert p[0] < 0.05 and p[-1] > 0.95
    unknown = judge.positive_probability(["", "zzzzqqq"])
    assert torch.allclose(unknown, torch.sigmoid(torch.tensor([judge.bias] * 2, dtype=torch.float64)))
    assert judge.positive_probability([]).shape == (0,)


def test_judge_probabilities_and_accuracy(judge):
    reviews = assets.heldout_reviews()[::10]
    p = judge.positive_probability([str(review["text"]) for review in reviews])
    assert (p >= 0).all() and (p <= 1).all() and p.std() > 0.1
    texts = ["a wonderful film", "an awful film"]
    assert judge.accuracy(texts, [1, 0]) == 1.0 and judge.accuracy(texts, [0, 1]) == 0.0
    assert judge.accuracy(texts, [1, 1]) == 0.5
    with pytest.raises(ValueError, match="as many labels as texts"):
        judge.accuracy(texts, [1])


def test_judge_knows_the_sides_of_the_excerpts(judge, texts):
    validation = texts["validation"]
    labels = [1] * len(validation["desired"]) + [0] * len(validation["undesired"])
    assert judge.accuracy(validation["desired"] + validation["undesired"], labels) >= 0.75


def test_pairs(judge):
    from transformers import AutoTokenizer

    pairs = assets.pairs()
    assert pairs == make_pairs.make_pairs(200, seed=0) != make_pairs.make_pairs(200, seed=1)
    assert len({pair["query"] for pair in pairs}) == len(pairs) == 200
    tokenizer = AutoTokenizer.from_pretrained(assets.model_folder())
    for pair in pairs:
        assert set(pair) == {"query", "desired", "undesired"}
        desired, undesired = pair["desired"], pair["undesired"]
        assert desired != undesired and desired[0] == undesired[0] == " " and desired[-1] == undesired[-1] == "."
        assert not pair["query"].endswith(" ") and "{" not in pair["query"] + desired + undesired
        lengths = [len(tokenizer(answer)["input_ids"]) for answer in (desired, undesired)]
        assert abs(lengths[0] - lengths[1]) <= 2
    sides = [[pair["query"] + pair[side] for pair in pairs] for side in ("desired", "undesired")]
    higher = judge.positive_probability(sides[0]) > judge.positive_probability(sides[1])
    assert higher.double().mean() >= 0.9
    with pytest.raises(ValueError, match="add words"):
        make_pairs.make_pairs(10_000)


def test_shipped_model_reads_the_validation_texts(texts):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(assets.model_folder())
    model = AutoModelForCausalLM.from_pretrained(assets.model_folder(), dtype=torch.float32).eval()
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (6, 256)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    sample = texts["validation"]["desired"][:20] + texts["validation"]["undesired"][:20]
    value, tokens = make_model.perplexity(model, tokenizer, sample)
    assert tokens > 2000 and 10 < value < 100
    shuffled = [" ".join(sorted(text.split(" "))) for text in sample]
    assert make_model.perplexity(model, tokenizer, shuffled)[0] > 3 * value


def test_the_training_recipe_makes_a_model_that_loads(tmp_path, capsys):
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reviews = [
        {"text": f"The {part} was {verdict} and film {i} is {verdict}."}
        for i in range(20)
        for part in ("story", "acting")
        for verdict in ("good", "bad", "long")
    ]
    source, out = tmp_path / "reviews", tmp_path / "model"
    source.mkdir()
    with gzip.open(source / "train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(review) + "\n" for review in reviews)
    toy = "--vocabulary 300 --width 32 --layers 2 --heads 2 --mlp 48 --length 32 --context 64 --batch 8".split()
    run = ["--reviews", str(source), "--out", str(out), *toy]
    untrained = make_model.main([*run, "--steps", "1"])
    trained = make_model.main([*run, "--steps", "60", "--rate", "1e-2"])
    assert trained < untrained / 5
    assert f"perplexity {trained:.1f}" in capsys.readouterr().out

    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("The story was good", return_tensors="pt")["input_ids"]
    assert tokenizer.bos_token_id == 0 and tokenizer.decode(ids[0]) == "The story was good"
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float16
    reference = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    bridge = TransformerBridge.boot_transformers(str(out), device="cpu", dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(bridge(ids, return_type="logits"), reference(ids).logits, atol=1e-4)
    measured = make_model.main(["--measure", str(out), "--reviews", str(source)])
    assert 1 < measured < untrained / 5
    with pytest.raises(SystemExit):
        make_model.main(["--reviews", str(source)])


def test_the_recipe_of_the_texts_is_repeatable(tmp_path, monkeypatch):
    monkeypatch.setattr(make_texts, "SIZES", {"fit": 3, "validation": 2, "heldout": 2})
    monkeypatch.setattr(make_texts, "BLOCKS", {"fit": 2, "validation": 1, "heldout": 1})
    for label, word in (("pos", "good"), ("neg", "bad")):
        rows = [
            {
                "id": i,
                "rating": 10 if label == "pos" else 1,
                "label": label,
                "text": f"Film {i} is {word}.<br /><br />" + f"{word} film {i} " * 40,
            }
            for i in range(300)
        ]
        rows[5]["text"] = "This app is good. " * 40
        with gzip.open(tmp_path / f"train_{label}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    outs = [tmp_path / "a", tmp_path / "b"]
    for out in outs:
        out.mkdir()
        make_texts.main(tmp_path, out, seed=3, terms=50)
    for name in ("texts.json", "heldout.jsonl.gz", "judge.json", "judge.safetensors"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()
    assert "<br" not in (outs[0] / "texts.json").read_text() and "app" not in (outs[0] / "texts.json").read_text()
    judge = Judge.load(outs[0])
    assert judge.accuracy(["a good film", "a bad film"], [1, 0]) == 1.0


def test_size_on_disk():
    def size(paths) -> float:
        return sum(path.stat().st_size for path in paths) / 1e6

    folder = Path(assets.FOLDER)
    assert 5 < size(assets.model_folder().iterdir()) <= 16
    assert size([folder / "judge.json", folder / "judge.safetensors"]) <= 1
    assert size(path for path in folder.iterdir() if path.is_file()) <= 2
