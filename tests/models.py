"""The random models of the package, and stories260K where it is beside the checkout, as every library holds them."""

from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from odesteer_tl.parity import models as made
from odesteer_tl.parity.models import WORDS, tokenizer, tokenizer_folder

__all__ = ["BACKENDS", "EVERY", "FAMILIES", "KINDS", "STORIES", "WORDS", "tokenizer", "tokenizer_folder"]

STORIES = Path(__file__).parents[2] / "shared" / "models" / "stories260K"
FAMILIES = ["llama", "gpt2"] + (["stories260K"] if STORIES.is_dir() else [])

try:
    from transformer_lens import HookedTransformer  # noqa: F401 — gone in 4.x, where the name raises ImportError
except ImportError:
    KINDS = ["bridge"]
else:
    KINDS = ["bridge", "hooked"]
BACKENDS = [*KINDS, "nnsight"]
EVERY = [*BACKENDS, "huggingface"]
"""For the central laws: a plain model is steered by what the others are steered by."""


@cache
def hugging_face(family: str):
    """The model itself, which the loaders below copy: do not hook it without removing the hook."""
    if family == "stories260K":
        return AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()
    return made.hugging_face(family)


def load(kind: str, family: str, *, bos_is_pad: bool = False, **options):
    """`dtype`, and `compatible` (fold and centre the weights) where the library knows it."""
    own = AutoTokenizer.from_pretrained(STORIES) if family == "stories260K" else tokenizer(bos_is_pad)
    loaders = {"bridge": made.as_bridge, "hooked": made.as_hooked, "nnsight": made.as_nnsight}
    loader = loaders.get(kind, made.as_hugging_face)
    return loader(hugging_face(family), own, **options)


def width(model) -> int:
    return model.cfg.d_model if hasattr(model, "cfg") else getattr(model, "_module", model).config.hidden_size


def hooks_of(model):
    """Whatever hangs on the modules of a model: hooks, edits, and forwards of their own."""
    inner = getattr(model, "_module", model)
    modules = [*inner.modules(), *getattr(inner, "original_model", torch.nn.Identity()).modules()]
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    hooks = [([len(own[each]) for each in kinds], own.get("forward")) for own in map(vars, modules)]
    points = [len(point.fwd_hooks) for point in getattr(model, "hook_dict", {}).values()]
    return hooks, points, list(getattr(model, "_edits", ()))
