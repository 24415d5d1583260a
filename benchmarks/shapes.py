"""Models of known shapes with random weights, made here and held by each library, and a method fitted for them."""

import os
import tempfile
import warnings
from importlib.metadata import version
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is downloaded; read when transformers is imported

import torch

import odesteer_tl as ot
from odesteer_tl.parity.models import as_bridge, as_hooked, as_nnsight

LLAMAS: dict[str, dict[str, int]] = {
    "llama-3.1-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip


def libraries() -> list[str]:
    """What holds a model in this environment: HookedTransformer is gone from TransformerLens 4."""
    three = version("transformer-lens").startswith("3.")
    return ["TransformerBridge", *(["HookedTransformer"] if three else []), "nnsight"]


def tokenizer(d_vocab: int) -> Any:
    """A word-level tokenizer of `d_vocab` words, loaded from a folder as any other."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(d_vocab - 4))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    folder = tempfile.mkdtemp()
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def gpt2(library: str, seed: int = 0, layers: int = 12, d_model: int = 768, d_vocab: int = 50257) -> Any:
    """GPT-2 small's shape (12 heads, 1024 positions, float32), as `library` holds it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=d_vocab, n_embd=d_model, n_layer=layers, n_head=d_model // 64, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(seed)
        model = GPT2LMHeadModel(config).eval()
        held = {"TransformerBridge": as_bridge, "HookedTransformer": as_hooked, "nnsight": as_nnsight}[library]
        return held(model, tokenizer(d_vocab))


def llama(shape: str, device: torch.device) -> Any:
    """A plain Hugging Face model of one of `LLAMAS` in bfloat16, its weights made where they are to be."""
    from transformers import LlamaConfig, LlamaForCausalLM

    own: Any = LLAMAS[shape] | {"rope_theta": 500000.0}
    config = LlamaConfig(**own, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    with torch.device("meta"):
        empty: Any = LlamaForCausalLM(config)
    model = empty.to(torch.bfloat16).to_empty(device=device).eval()
    generator = torch.Generator(device=device).manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(1)
        else:
            parameter.data.normal_(std=0.02, generator=generator)
    with device:  # buffers are not weights: they are computed anew
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model


def fitted(name: str, d_model: int, layer: int, samples: int = 1000, seed: int = 0) -> Any:
    """A method fitted at its defaults to random activations: what a step costs does not depend on the numbers."""
    generator = torch.Generator().manual_seed(seed)
    desired, undesired, shift = (torch.randn(n, d_model, generator=generator) for n in (samples, samples, 1))
    acts = ot.ContrastiveActivations(desired + 0.1 * shift, undesired, layer=layer)
    return {"odesteer": ot.ODESteer, "caa": ot.CAA}[name].fit(acts)


def prompts(batch: int, width: int, d_vocab: int, seed: int = 0) -> torch.Tensor:
    """Random token ids [batch, width], none of them special."""
    return torch.randint(4, d_vocab, (batch, width), generator=torch.Generator().manual_seed(seed))
