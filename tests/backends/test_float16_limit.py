"""Steering that float16 cannot hold is said, at the end of a block and by generate."""

import copy
import warnings

import pytest
import torch
from models import hugging_face, tokenizer

import odesteer_tl as ot
from odesteer_tl.parity.models import as_nnsight

TOKENS = torch.tensor([[1, 5, 6]])
SAID = r"at blocks\.1\.hook_resid_post reached the largest number of float16, 65504, and were cut there"


def model_in_float16(kind):
    model = copy.deepcopy(hugging_face("llama")).half()
    return as_nnsight(model, tokenizer(), torch.float16) if kind == "nnsight" else model


@pytest.mark.parametrize("kind", ["nnsight", "huggingface"])
def test_what_is_cut_is_said_and_nothing_else(kind):
    model, generator = model_in_float16(kind), torch.Generator().manual_seed(0)
    sides = torch.randn(2, 4, 32, generator=generator)
    method = ot.RandomDirection.fit(ot.ContrastiveActivations(*sides, layer=1))
    far, run = [(method, 6e4)] * 4, getattr(model, "_module", model)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", UserWarning)
        with ot.steering(model, method, 30.0):
            run(TOKENS)
    with pytest.warns(UserWarning, match=SAID), torch.no_grad(), ot.steering(model, far):
        run(TOKENS)
    with pytest.warns(UserWarning, match=SAID):
        ot.generate(model, TOKENS, far, max_new_tokens=2, stop_at_eos=False)
