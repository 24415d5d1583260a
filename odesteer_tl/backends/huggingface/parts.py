"""The parts of a plain Hugging Face model: the model inside its wrappers, its decoder blocks, the module at a site, and
its tokenizer."""

from typing import Any, Literal
from weakref import WeakKeyDictionary

from odesteer_tl.portable.decoder_blocks import is_list, path_of_blocks, path_of_projection, unknown_blocks
from odesteer_tl.portable.sites import Site

SITES = ("resid_pre", "z", "resid_post")
"""The sites that can be read and written: the input and output of a block, and the input of its attention's output
projection."""

_TOKENIZERS: "WeakKeyDictionary[Any, Any]" = WeakKeyDictionary()
"""The tokenizers that were loaded by a model's name; None if this machine has none."""


def root_of(model: Any) -> Any:
    """The `PreTrainedModel` inside a model wrapped by torch.compile or a PEFT adapter; otherwise the model itself."""
    model = getattr(model, "_orig_mod", model)
    inner = getattr(model, "get_base_model", None)
    return model if inner is None else inner()


def blocks_in(model: Any, blocks: Any = None) -> Any:
    """The list of decoder blocks (see `decoder_blocks.path_of_blocks`). `blocks` names it: a dotted path, or the list
    itself. Raises ValueError if no list, or more than one, fits."""
    root = root_of(model)
    if blocks is None:
        return root.get_submodule(path_of_blocks(root, root.config))
    block_list = blocks
    if isinstance(blocks, str):
        try:
            block_list = root.get_submodule(blocks)
        except AttributeError:
            kind = type(root).__name__
            raise unknown_blocks(root, f"blocks={blocks!r} leads nowhere in a {kind}") from None
    if not is_list(block_list):
        what = blocks if isinstance(blocks, str) else type(blocks).__name__
        raise unknown_blocks(root, f"blocks={what} is no list of modules")
    return block_list


def module_at(blocks: Any, site: Site) -> tuple[Any, Literal["input", "output"]]:
    """The module whose input or output is the site. Raises ValueError for a site that this model does not have."""
    if site.name not in SITES:
        raise ValueError(
            f"The sites of a Hugging Face model are {', '.join(SITES[:-1])} and {SITES[-1]}, got {site.name}: choose "
            "one of them, or load the model as a TransformerBridge, ot.load_model(name)."
        )
    block = blocks[site.layer]
    if site.name == "z":
        return block.get_submodule(path_of_projection(block)), "input"
    return block, "output" if site.name == "resid_post" else "input"


def tokenizer_of(model: Any) -> Any:
    """`model.tokenizer`, or else the local tokenizer of the model's name; None without either."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None:
        return tokenizer
    root = root_of(model)
    if root not in _TOKENIZERS:
        try:
            _TOKENIZERS[root] = _loaded(root, local_files_only=True)
        except Exception:  # transformers raises many types if there is no folder or no tokenizer in it
            _TOKENIZERS[root] = None
    return _TOKENIZERS[root]


def needed_tokenizer(model: Any) -> Any:
    """The tokenizer of `tokenizer_of`, or else from the Hugging Face Hub. Raises ValueError if there is none."""
    tokenizer = tokenizer_of(model)
    if tokenizer is not None:
        return tokenizer
    root, reason = root_of(model), "the model has no name to load one by"
    if _name(root):
        try:
            tokenizer = _TOKENIZERS[root] = _loaded(root)
            return tokenizer
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
