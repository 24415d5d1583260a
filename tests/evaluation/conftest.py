"""What the tests of comparisons share: the embedded data, and held-out planted activations."""

import pytest
import torch
from instances import planted
from transformers import AutoModelForCausalLM, AutoTokenizer

import odesteer_tl as ot
from odesteer_tl import assets


@pytest.fixture(scope="session")
def demo():
    return ot.load_demo()


@pytest.fixture(scope="session")
def half(tmp_path_factory):
    """The demo with the lower three of its model's six blocks, which write as many words in half the time."""
    folder = tmp_path_factory.mktemp("half")
    model = AutoModelForCausalLM.from_pretrained(assets.model_folder(), dtype=torch.float32)
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:3], 3
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(assets.model_folder()).save_pretrained(folder)
    return ot.load_demo(ot.load_model(str(folder)))


@pytest.fixture(scope="module")
def held_out():
    return planted(50, 40, seed=3)
