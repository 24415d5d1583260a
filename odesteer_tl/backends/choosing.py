"""Which library a model belongs to, told by what it offers, so that no model library is imported."""

from typing import Any, Literal

Kind = Literal["HookedTransformer", "TransformerBridge", "nnsight"]


def kind_of(model: Any) -> Kind:
    """The class of models that `model` behaves like. Raises ValueError for a model of any other library."""
    if all(hasattr(model, name) for name in ("cfg", "run_with_cache", "blocks")):
        if hasattr(model, "original_model"):
            return "TransformerBridge"
        if hasattr(model, "embed"):
            return "HookedTransformer"
    if all(hasattr(model, name) for name in ("_module", "trace", "interleave", "interleaver")):
        return "nnsight"
    raise ValueError(
        "Expected a HookedTransformer or a TransformerBridge of TransformerLens, or an nnsight model, got "
        f"{type(model).__name__}. A Hugging Face name or folder becomes one with ot.load_model(name); a Hugging Face "
        'model in memory with nnsight.TransformersModel(model, tokenizer=tokenizer, task="text-generation").'
    )
