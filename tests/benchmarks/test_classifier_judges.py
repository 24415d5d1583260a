"""Judges that are models of transformers: random ones in folders, against the plain model on one text at a time."""

import json

import pytest
import torch
from models import tokenizer
from transformers import BertConfig, BertForSequenceClassification, BertModel

from odesteer_tl import benchmarks
from odesteer_tl.benchmarks.classifier_judges import messages_of

TEXTS = ["the film is good", "a plot", "", "it is a good film and a plot and it is good and a film"]


def saved(folder, labels, kind=BertForSequenceClassification, **options):
    torch.manual_seed(0)
    own = tokenizer()
    config = BertConfig(
        vocab_size=len(own), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12, id2label=dict(enumerate(labels)), label2id={own: i for i, own in enumerate(labels)},
        pad_token_id=own.pad_token_id, initializer_range=0.5, **options,
    )  # fmt: skip
    model = kind(config).eval()
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    return model, own


def others(folder):
    """The same judge in another precision, and trained on."""
    yield benchmarks.ClassifierJudge.load(folder, "toxic", dtype=torch.float64)
    trained = benchmarks.ClassifierJudge.load(folder, "toxic")
    trained.of.model.classifier.weight.data += 1
    yield trained


@torch.no_grad()
def by_hand(model, own):
    rows = [own(text or " ")["input_ids"][-12:] or own(" x")["input_ids"] for text in TEXTS]
    return torch.cat([model(torch.tensor([row])).logits for row in rows]).double()


@pytest.mark.parametrize("several", [False, True])
def test_a_classifier_gives_the_probability_of_its_label(several, tmp_path):
    kind = {"problem_type": "multi_label_classification"} if several else {}
    model, own = saved(tmp_path, ["fine", "toxic", "odd"], **kind)
    judge = benchmarks.ClassifierJudge.load(tmp_path, "toxic", batch_size=2)
    wanted = by_hand(model, own)
    wanted = wanted.sigmoid()[:, 1] if several else wanted.softmax(-1)[:, 1]
    keep = [0, 1, 3]  # an empty text is one space here
    with pytest.warns(
        UserWarning, match="1 of 4 texts are longer than the 12 tokens .*: their beginnings are left out"
    ):
        torch.testing.assert_close(judge(TEXTS)[keep], wanted[keep], rtol=1e-5, atol=1e-6)
    assert judge.record()["label"] == "toxic" and judge([]).shape == (0,)
    assert judge.record()["max_tokens"] == 12 and judge.record()["dtype"] == "float32"
    assert len({json.dumps(one.record()) for one in (judge, *others(tmp_path))}) == 3
    assert torch.equal(benchmarks.ClassifierJudge.load(tmp_path, 1)(TEXTS[:1]), judge(TEXTS[:1]))
    with pytest.raises(ValueError, match="has the labels fine, toxic, odd, and not 'rude'"):
        benchmarks.ClassifierJudge.load(tmp_path, "rude")
    with pytest.raises(ValueError, match="a reward model has one"):
        benchmarks.RewardJudge.load(tmp_path)


def test_a_reward_model_gives_its_logit_and_reads_dialogues_in_its_template(tmp_path):
    model, own = saved(tmp_path, ["reward"])
    judge = benchmarks.RewardJudge.load(tmp_path)
    torch.testing.assert_close(judge(TEXTS[:2]), by_hand(model, own)[:2, 0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no chat template"):
        benchmarks.RewardJudge.load(tmp_path, chat=True)
    own.chat_template = (
        "{% for m in messages %}{{ m['role'][:1] == 'u' and 'it ' or 'the ' }}{{ m['content'] }} {% endfor %}"
    )
    own.save_pretrained(tmp_path)
    chat = benchmarks.RewardJudge.load(tmp_path, chat=True)
    said = "\n\nHuman: is good\n\nAssistant: film"
    assert messages_of(said) == [{"role": "user", "content": "is good"}, {"role": "assistant", "content": "film"}]
    row = own("it is good the film ", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(chat([said])[0], model(torch.tensor([row])).logits[0, 0].double().detach())
    with pytest.raises(ValueError, match="begins with a turn"):
        chat(["no turn"])


def test_a_model_without_a_trained_head_is_refused(tmp_path):
    saved(tmp_path, ["a", "b"], BertModel)
    with pytest.raises(ValueError, match="it is no trained classifier"):
        benchmarks.ClassifierJudge.load(tmp_path, "a")
