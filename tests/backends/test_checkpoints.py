"""Checkpoints that lack weights are refused by every library, and whole ones load as they are."""

import logging

import pytest
import torch
from models import hugging_face, tokenizer
from safetensors.torch import load_file, save_file

import odesteer_tl as ot
from odesteer_tl.backends.checkpoints import check_whole

LIBRARIES = ("huggingface", "transformer_lens", "nnsight")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    """A saved model; gpt2's head is tied to its embedding, and not in the file."""
    folder = tmp_path_factory.mktemp(request.param)
    hugging_face(request.param).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def without(folder, part: str, place):
    """A copy of the folder without the first weight whose name holds `part`; and this name."""
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if part in key)
    del weights[name]
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    return place, name


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("part", ["mlp", "embed|wte"])
def test_a_weight_that_is_not_there_is_named(library, part, folder, tmp_path):
    part = next(one for one in part.split("|") if any(one in key for key in load_file(folder / "model.safetensors")))
    lacking, name = without(folder, part, tmp_path)
    with pytest.raises(ValueError, match=r"lacks .*which would be random") as caught:
        ot.load_model(lacking, library=library)
    assert name.split(".", 1)[1] in str(caught.value)


def test_what_it_logs_is_not_logged_twice_and_later_messages_are(folder, tmp_path, monkeypatch):
    log, said = logging.getLogger("transformers"), []
    hearing = logging.Handler()
    monkeypatch.setattr(hearing, "emit", said.append)
    level = log.level
    log.setLevel(logging.WARNING)
    log.addHandler(hearing)
    try:
        with pytest.raises(ValueError, match="lacks"):
            check_whole(str(without(folder, "mlp", tmp_path)[0]))
        assert not said and log.level == logging.WARNING
        logging.getLogger("transformers.modeling_utils").warning("heard")
        assert len(said) == 1
    finally:
        log.removeHandler(hearing)
        log.setLevel(level)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_whole_one_loads(library, folder):
    model = ot.load_model(folder, library=library)
    acts = ot.collect(model, ["the film is good"], ["the film is a plot"], layer=1, prepend_bos=False)
    expected = ot.load_model(folder, library="huggingface")
    same = ot.collect(expected, ["the film is good"], ["the film is a plot"], layer=1, prepend_bos=False)
    torch.testing.assert_close(acts.desired, same.desired, rtol=1e-4, atol=1e-4)


def test_a_model_that_nnsight_made_is_checked_when_it_first_runs_here(folder, tmp_path):
    from nnsight import TransformersModel
    from nnsight.modeling import huggingface

    lacking, _ = without(folder, "mlp", tmp_path)
    huggingface._ID_CACHE[str(lacking)] = str(lacking)
    model = TransformersModel(str(lacking), tokenizer=tokenizer(), task="text-generation")
    with pytest.raises(ValueError, match="which would be random"):
        ot.collect(model, ["the film"], ["the plot"], layer=1)
    assert not model.dispatched
