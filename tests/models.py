"""Random models that show mistakes: weights of standard deviation 0.3, so that one wrong token moves every logit.

Each is made once from a Hugging Face model, and then loaded as TransformerLens holds it. Loaders return models of their
own: a bridge wraps its Hugging Face model in place.
"""

import copy
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = "the a film plot is was good bad slow dull fine great we saw it and but never again truly".split()
STORIES = Path(__file__).parents[2] / "shared" / "models" / "stories260K"
FAMILIES = ["llama", "gpt2"] + (["stories260K"] if STORIES.is_dir() else [])

try:
    from transformer_lens import HookedTransformer  # gone in 4.x, where the name raises ImportError
except ImportError:
    KINDS = ["bridge"]
else:
    KINDS = ["bridge", "hooked"]
BACKENDS = [*KINDS, "nnsight"]


@cache
def tokenizer_folder(bos_is_pad: bool = False) -> str:
    """A word-level tokenizer with <s>, </s>, <pad>; or, as GPT-2's, with one token for all three."""
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


def tokenizer(bos_is_pad: bool = False):
    return AutoTokenizer.from_pretrained(tokenizer_folder(bos_is_pad))


@cache
def _hugging_face(family: str):
    if family == "stories260K":
        return AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "llama":
            config = LlamaConfig(
                vocab_size=24, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, bos_token_id=1,
                eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
            )  # fmt: skip
            model = LlamaForCausalLM(config).eval()
        else:
            config = GPT2Config(
                vocab_size=24, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.3,
                bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
            )  # fmt: skip
            model = GPT2LMHeadModel(config).eval()
        for parameter in model.parameters():  # norms start at 1 and biases at 0, which hides mistakes
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn(parameter.shape)
        return model


def hugging_face(family: str):
    """The model itself, which the loaders below copy: do not hook it without removing the hook."""
    return _hugging_face(family)


def _tokenizer_for(family: str, bos_is_pad: bool):
    return AutoTokenizer.from_pretrained(STORIES) if family == "stories260K" else tokenizer(bos_is_pad)


def bridge(family: str, *, bos_is_pad: bool = False, dtype: torch.dtype = torch.float32, compatible: bool = False):
    """A TransformerBridge; `compatible` folds and centres the weights."""
    from transformer_lens.model_bridge import TransformerBridge

    hf = copy.deepcopy(_hugging_face(family)).to(dtype)
    model = TransformerBridge.boot_transformers(
        "tiny", hf_model=hf, tokenizer=_tokenizer_for(family, bos_is_pad), device="cpu", dtype=dtype
    )
    if compatible:
        model.enable_compatibility_mode()
    return model


def hooked(family: str, *, bos_is_pad: bool = False, dtype: torch.dtype = torch.float32, compatible: bool = False):
    """A HookedTransformer (3.x only); `compatible` folds and centres the weights."""
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights, convert_llama_weights

    hf = _hugging_face(family)
    c = hf.config
    if family == "gpt2":
        convert, own = (
            convert_gpt2_weights,
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
            convert_llama_weights,
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
        config = HookedTransformerConfig(
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
        model = HookedTransformer(config, tokenizer=_tokenizer_for(family, bos_is_pad))
        model.load_and_process_state_dict(
            convert(hf, config),
            fold_ln=compatible,
            center_writing_weights=compatible and family == "gpt2",
            center_unembed=compatible,
            fold_value_biases=compatible,
        )
    return model.to(dtype)


def nnsight(family: str, *, bos_is_pad: bool = False, dtype: torch.dtype = torch.float32):
    """A model in memory, as nnsight holds it."""
    from nnsight import TransformersModel

    hf = copy.deepcopy(_hugging_face(family)).to(dtype)
    return TransformersModel(hf, tokenizer=_tokenizer_for(family, bos_is_pad), task="text-generation")


def load(kind: str, family: str, **options):
    return {"bridge": bridge, "hooked": hooked, "nnsight": nnsight}[kind](family, **options)


def width(model) -> int:
    return model.cfg.d_model if hasattr(model, "cfg") else model._module.config.hidden_size
