"""Which library a model belongs to, told by what it offers, so that no model library is imported."""

from typing import Any, Literal

Kind = Literal["HookedTransformer", "TransformerBridge"]


def kind_of(model: Any) -> Kind:
    """The class of models that `model` behaves like. Raises ValueError for a model of any other library."""
    if all(hasattr(model, name) for name in ("cfg", "hook_dict", "run_with_cache", "blocks")):
        if hasattr(model, "original_model"):
            return "TransformerBridge"
        if hasattr(model, "embed"):
            return "HookedTransformer"
    raise ValueError(
        f"Expected a HookedTransformer or a TransformerBridge of TransformerLens, got {type(model).__name__}. "
        "A Hugging Face model or folder becomes one with ot.load_model(name)."
    )
