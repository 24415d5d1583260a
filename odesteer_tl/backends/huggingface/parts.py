"""The parts of a plain Hugging Face model: what is in its wrappers, its decoder blocks, the module at a site, and its
tokenizer."""

from typing import Any, Literal
from weakref import WeakKeyDictionary

from odesteer_tl.portable.decoder_blocks import is_list, path_of_blocks, path_of_projection, unknown_blocks
from odesteer_tl.portable.sites import Site

SITES = ("resid_pre", "z", "resid_post")
"""What is read and written: what enters and leaves a block, and what enters its attention's output projection."""

_TOKENIZERS: "WeakKeyDictionary[Any, Any]" = WeakKeyDictionary()
"""Those that were loaded for a model by its name; None where it has none on this machine."""


def root_of(model: Any) -> Any:
    """The `PreTrainedModel` in a model that torch.compile or a PEFT adapter wraps; else the model itself."""
    model = getattr(model, "_orig_mod", model)
    inner = getattr(model, "get_base_model", None)
    return model if inner is None else inner()


def blocks_in(model: Any, blocks: Any = None) -> Any:
    """The list of decoder blocks: the one as long as the configuration says whose items attend. `blocks` says which it
    is: a dotted path, or the list itself. Raises ValueError where no list, or more than one, fits."""
    root = root_of(model)
    if blocks is None:
        return root.get_submodule(path_of_blocks(root, root.config))
    found = blocks
    if isinstance(blocks, str):
        try:
            found = root.get_submodule(blocks)
        except AttributeError:
            kind = type(root).__name__
            raise unknown_blocks(root, f"blocks={blocks!r} leads nowhere in a {kind}") from None
    if not is_list(found):
        raise unknown_blocks(root, f"blocks={blocks if isinstance(blocks, str) else type(blocks).__name__} is no list")
    return found


def module_at(blocks: Any, site: Site) -> tuple[Any, Literal["input", "output"]]:
    """The module whose input or output is the site. Raises ValueError for a site that is not found."""
    if site.name not in SITES:
        raise ValueError(
            f"In a Hugging Face model {', '.join(SITES[:-1])} and {SITES[-1]} are read and written, not {site.name}: "
            "load the model as a TransformerBridge, ot.load_model(name)."
        )
    block = blocks[site.layer]
    if site.name == "z":
        return block.get_submodule(path_of_projection(block)), "input"
    return block, "output" if site.name == "resid_post" else "input"


def tokenizer_of(model: Any) -> Any:
    """`model.tokenizer`, or else the one that lies on this machine under the model's name; None without either."""
    own = getattr(model, "tokenizer", None)
    if own is not None:
        return own
    root = root_of(model)
    if root not in _TOKENIZERS:
        try:
            _TOKENIZERS[root] = _loaded(root, local_files_only=True)
        except Exception:  # of any kind, for a folder that is gone, or one without a tokenizer
            _TOKENIZERS[root] = None
    return _TOKENIZERS[root]


def needed_tokenizer(model: Any) -> Any:
    """The same, asked of the Hugging Face Hub too. Raises ValueError where it is nowhere."""
    found = tokenizer_of(model)
    if found is not None:
        return found
    root, reason = root_of(model), "the model has no name to find one by"
    if _name(root):
        try:
            found = _TOKENIZERS[root] = _loaded(root)
            return found
        except Exception as error:
            reason = f"none is found under the model's name, {_name(root)!r} ({type(error).__name__})"
    raise ValueError(
        f"This {type(root).__name__} has no tokenizer, and {reason}: set it, model.tokenizer = "
        "AutoTokenizer.from_pretrained(...), or pass token tensors, or Tokenised(tokens, mask)."
    )


def _name(root: Any) -> str:
    return str(getattr(root.config, "name_or_path", None) or "")


def _loaded(root: Any, **options: Any) -> Any:
    if not _name(root):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_name(root), trust_remote_code=False, **options)
