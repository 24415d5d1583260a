"""The names that this package reads from transformers, TransformerLens and nnsight, and the errors if one is missing.

A library may rename names that are not in its public interface. `NAMES` lists every such name and what happens without
it; `tests/backends/test_upstream_names.py` looks for them in the installed versions. `need` and `need_parameter` raise
if a missing name would steer the wrong tokens.
"""

import inspect
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

_DISTRIBUTIONS = {"transformer_lens": "transformer-lens"}
_version = cache(version)  # `version` parses a file at every call, and every steering block calls it


def made_by(thing: Any) -> str:
    """The library of an object's class and its version, as in "transformers 5.24.0 (LlamaModel)"."""
    kind = thing if isinstance(thing, type) else type(thing)
    package = kind.__module__.partition(".")[0]
    return f"{library(package)} ({kind.__name__})"


def library(package: str) -> str:
    """A package and its version, as in "transformers 5.24.0"; the name alone if it has no version."""
    try:
        return f"{package} {_version(_DISTRIBUTIONS.get(package, package))}"
    except PackageNotFoundError:
        module_version = getattr(sys.modules.get(package), "__version__", None)
        return package if module_version is None else f"{package} {module_version}"


def need(thing: Any, name: str, why: str) -> Any:
    """`thing.name`. Raises ValueError, naming library, version and remedy, if it is missing."""
    try:
        return getattr(thing, name)
    except AttributeError:
        raise _gone(thing, f"has no {name}", why) from None


def need_parameter(owner: Any, name: str, why: str) -> None:
    """Raises ValueError if the forward of the module `owner` has no argument of this name."""
    if name not in inspect.signature(type(owner).forward).parameters:
        raise _gone(owner, f"takes no argument {name}", why)


def _gone(thing: Any, what: str, why: str) -> ValueError:
    return ValueError(
        f"{made_by(thing)} {what}, {why}. This package was not tested with that version: install the versions that "
        "constraints.txt names, pip install -c constraints.txt, or report it."
    )


class Name(NamedTuple):
    """`names` of `owner`, a dotted path; `without`: what happens here if one is missing."""

    library: str
    owner: str
    names: str
    without: str


_LOUD = "AttributeError or ImportError at the first use"
_UNREAD = "ValueError: the cache does not say its length (kv_caches.py)"
NAMES = (
    Name("transformers", "cache_utils.DynamicCache", "get_seq_length layers", _UNREAD),
    Name("transformers", "cache_utils.DynamicLayer", "get_seq_length", "ValueError: no layer says how much it holds"),
    Name("transformers", "cache_utils.DynamicCache", "batch_repeat_interleave",
         "AttributeError: several strengths cannot share a prompt"),
    Name("transformers", "cache_utils", "DynamicLayer DynamicSlidingWindowLayer", _LOUD),
    Name("transformers", "generation.utils", "GenerateDecoderOnlyOutput", _LOUD),
    Name("transformers", "cache_utils.StaticLayer", "max_cache_len", "ValueError: the mask is wider than the cache"),
    Name("transformers", "cache_utils.LinearAttentionLayer", "has_previous_state", "ValueError: no layer says"),
    Name("transformers", "cache_utils.EncoderDecoderCache", "self_attention_cache", _UNREAD),
    Name("transformers", "modeling_layers.GradientCheckpointingLayer", "gradient_checkpointing",
         "ValueError: computed once more during a backward pass"),
    Name("transformers", "GenerationMixin", "generate", _LOUD),
    Name("transformers", "PreTrainedModel", "get_input_embeddings get_submodule",
         "ValueError: Expected a HookedTransformer or …, got"),
    Name("transformers", "AutoModelForCausalLM", "from_pretrained", _LOUD),
    Name("transformers", "AutoTokenizer", "from_pretrained", "ValueError: has no tokenizer"),
    Name("transformers", "LlamaForCausalLM", "forward generate", "ValueError: does not generate"),
    Name("transformers", "PreTrainedConfig", "get_text_config to_dict", "a version less in messages; no context check"),
    Name("transformers", "LlamaConfig()", "hidden_size max_position_embeddings num_hidden_layers eos_token_id",
         "warning: width or context cannot be checked; ValueError: no decoder blocks"),
    Name("transformers", "GenerationConfig()", "eos_token_id bos_token_id temperature top_k top_p min_p typical_p "
         "repetition_penalty encoder_repetition_penalty no_repeat_ngram_size guidance_scale suppress_tokens num_beams "
         "num_return_sequences return_dict_in_generate use_cache pad_token_id max_new_tokens do_sample",
         "ValueError of transformers: unused model_kwargs"),
    Name("transformers", "PreTrainedTokenizerBase", "apply_chat_template decode convert_ids_to_tokens", _LOUD),
    Name("transformers", "PreTrainedTokenizerBase()", "bos_token_id eos_token_id pad_token_id chat_template", _LOUD),
    Name("transformers", "utils.logging", "is_progress_bar_enabled disable_progress_bar enable_progress_bar", _LOUD),
    Name("transformer_lens", "model_bridge.TransformerBridge",
         "boot_transformers run_with_cache generate hf_generate hook_dict", _LOUD),
    Name("transformer_lens", "model_bridge.exceptions", "StopAtLayerException", _LOUD),
    Name("transformer_lens", "hook_points.HookPoint", "add_hook", _LOUD),
    Name("transformer_lens", "hook_points.HookPoint()", "fwd_hooks", _LOUD),
    Name("transformer_lens", "model_bridge.generalized_components.attention.AttentionBridge", "_update_kv_cache",
         "ValueError: the cache holds 0 columns (a bridge that loses its cache)"),
    Name("nnsight", "TransformersModel", "trace generate edit scan session dispatch", _LOUD),
    Name("nnsight", "intervention.interleaver", "Event Mediator Pending", _LOUD),
    Name("nnsight", "intervention.interleaver.Mediator", "start handle alive occurrence wanted current", _LOUD),
    Name("nnsight", "intervention.interleaver.Event", "VALUE", _LOUD),
    Name("nnsight", "intervention.backends.remote", "RemoteError", _LOUD),
    Name("nnsight", "modeling.huggingface", "_ID_CACHE", _LOUD),
    Name("nnsight", "CONFIG.API", "HOST", _LOUD),
)  # fmt: skip
"""Names in the libraries, without the arguments of calls (the libraries check these) and without parts of models."""

CARRIED = (
    Name("nnsight", "model", "_edits _module interleaver tokenizer repo_id dispatched get", _LOUD),
    Name("nnsight", "model.interleaver", "mediators interleaving counts batcher", _LOUD),
    Name("nnsight", "block", "path _module output inputs", _LOUD),
    Name("nnsight", "model._module", "config generation_config named_modules", "ValueError: has no generation_config"),
    Name("transformer_lens", "model", "cfg hook_dict blocks tokenizer W_E ln_final", _LOUD),
    Name("transformer_lens", "model.cfg", "n_layers d_model n_ctx model_name default_prepend_bos", _LOUD),
    Name("transformer_lens", "block.ln1", "w", "ValueError: by which folded weights are told from raw ones"),
)
"""Attributes of model objects: of "model", its first "block", and their parts."""

PARAMETERS = (
    Name("transformers", "LlamaModel", "input_ids inputs_embeds attention_mask position_ids use_cache",
         "ValueError: neither input_ids nor inputs_embeds is given, or takes no attention_mask"),
    Name("transformers", "MambaModel", "input_ids inputs_embeds attention_mask use_cache", "the same"),
)  # fmt: skip
"""Arguments of a forward that this package reads by name."""
