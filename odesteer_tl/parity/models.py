"""Small random models on which mistakes show, in every library.

Weights have standard deviation 0.3, and norms and biases are perturbed: with the usual initialisation one wrong token
hardly changes a logit. Each model is made once as a Hugging Face model; each library gets a copy, as a bridge changes
the model that it wraps.
"""

import copy
import tempfile
import warnings
from functools import cache
from importlib import import_module
from typing import Any, Literal

import torch

from odesteer_tl.backends.transformer_lens.cache_names import rename_permanently

Family = Literal["llama", "gpt2"]
"""llama: RMSNorm, rotary positions, grouped-query attention. gpt2: LayerNorm, learned positions."""

WORDS = "the a film plot is was good bad slow dull fine great we saw it and but never again truly".split()


@cache
def tokenizer_folder(bos_is_pad: bool = False) -> str:
    """A word-level tokenizer with <s>, </s>, <pad>; or, as GPT-2's, with one token for all three."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>"] if bos_is_pad else ["<pad>", "<s>", "</s>"]
    vocabulary = {word: i for i, word in enumerate([*special, "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    names = {"pad_token": "<s>", "bos_token": "<s>", "eos_token": "<s>"}
    if not bos_is_pad:
        names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    folder = tempfile.mkdtemp()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **names).save_pretrained(folder)
    return folder


def tokenizer(bos_is_pad: bool = False) -> Any:
    """A new tokenizer, loaded by transformers from `tokenizer_folder`."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder(bos_is_pad))


@cache
def hugging_face(family: Family) -> Any:
    """The model itself, three layers of width 32. It is shared: remove every hook after use."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    common: dict[str, Any] = {"vocab_size": 24, "initializer_range": 0.3, "tie_word_embeddings": False}
    common |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if family == "llama":
            config = LlamaConfig(
                hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=64, **common,
            )  # fmt: skip
            model = LlamaForCausalLM(config).eval()
        else:
            model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=64, **common)).eval()
        for parameter in model.parameters():  # norms start at 1 and biases at 0, which would hide mistakes
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn(parameter.shape, device="cpu")
        return model


def as_bridge(hf: Any, tokenizer: Any, dtype: torch.dtype = torch.float32, compatible: bool = False) -> Any:
    """A TransformerBridge; `compatible` folds and centres the weights."""
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(
        "tiny", hf_model=copy.deepcopy(hf).to(dtype), tokenizer=tokenizer, device="cpu", dtype=dtype
    )
    if compatible:
        model.enable_compatibility_mode()
    return rename_permanently(model)


def as_nnsight(hf: Any, tokenizer: Any, dtype: torch.dtype = torch.float32) -> Any:
    """An nnsight model of a model in memory."""
    from nnsight import TransformersModel

    return TransformersModel(copy.deepcopy(hf).to(dtype), tokenizer=tokenizer, task="text-generation")


def as_hugging_face(hf: Any, tokenizer: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The plain model, with its tokenizer as an attribute."""
    model = copy.deepcopy(hf).to(dtype)
    model.tokenizer = tokenizer
    return model


@cache
def saved(family: Family) -> str:
    """A folder with the model and its tokenizer, for this process and for a server that reads the same disk."""
    folder = tempfile.mkdtemp()
    hugging_face(family).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def as_hooked(hf: Any, tokenizer: Any, dtype: torch.dtype = torch.float32, compatible: bool = False) -> Any:
    """A HookedTransformer (3.x only); `compatible` folds and centres the weights."""
    lens: Any = import_module("transformer_lens")  # by name, as 4.x does not have it
    conversions: Any = import_module("transformer_lens.pretrained.weight_conversions")
    c = hf.config
    if c.model_type == "gpt2":
        convert, own = (
            conversions.convert_gpt2_weights,
            {
                "d_mlp": 4 * c.n_embd,
                "eps": c.layer_norm_epsilon,
                "act_fn": c.activation_function,
                "normalization_type": "LN",
                "original_architecture": "GPT2LMHeadModel",
            },
        )
    else:
        convert, own = (
            conversions.convert_llama_weights,
            {
                "n_key_value_heads": c.num_key_value_heads,
                "d_mlp": c.intermediate_size,
                "eps": c.rms_norm_eps,
                "act_fn": "silu",
                "normalization_type": "RMS",
                "final_rms": True,
                "gated_mlp": True,
                "positional_embedding_type": "rotary",
                "rotary_adjacent_pairs": False,
                "rotary_dim": c.hidden_size // c.num_attention_heads,
                "original_architecture": "LlamaForCausalLM",
            },
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        config = lens.HookedTransformerConfig(
            model_name="tiny",
            d_model=c.hidden_size,
            d_head=c.hidden_size // c.num_attention_heads,
            n_heads=c.num_attention_heads,
            n_layers=c.num_hidden_layers,
            n_ctx=c.max_position_embeddings,
            d_vocab=c.vocab_size,
            device="cpu",
            **own,
        )
        model = lens.HookedTransformer(config, tokenizer=tokenizer)
        model.load_and_process_state_dict(
            convert(hf, config),
            fold_ln=compatible,
            center_writing_weights=compatible and c.model_type == "gpt2",
            center_unembed=compatible,
            fold_value_biases=compatible,
        )
    return model.to(dtype)
