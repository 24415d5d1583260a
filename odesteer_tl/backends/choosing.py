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
    if all(hasattr(model, name) for name in ("cfg", "run_with_cache", "original_model")):
        raise ValueError(
            f"This {type(model).__name__} has no one list of decoder blocks (as an encoder-decoder has not): "
            'steer it in nnsight, nnsight.TransformersModel(model, ...), with blocks="model.decoder.layers" or where '
            "its decoder blocks are."
        )
    raise ValueError(
        "Expected a HookedTransformer or a TransformerBridge of TransformerLens, or an nnsight model, got "
        f"{type(model).__name__}. A Hugging Face name or folder becomes one with ot.load_model(name); a Hugging Face "
        'model in memory with nnsight.TransformersModel(model, tokenizer=tokenizer, task="text-generation").'
    )
