"""The architectures that people steer, each as a tiny random model whose sliding window, where it has one, is 4.

They show mistakes as those of `models.py` do: weights of standard deviation 0.3, norms and biases off their defaults.
"""

from functools import cache

import torch
import transformers

VOCABULARY, WIDTH, LAYERS, WINDOW = 24, 32, 3, 4

COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.3}
SIZES = {
    **COMMON, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
GATED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

# name: class prefix, arguments of its config, the path of its blocks
EAGER_ONLY = {"gemma2"}  # transformers refuses SDPA there, for the soft cap on its attention logits
ARCHITECTURES = {
    "llama": ("Llama", GATED, "model.layers"),
    "qwen2": (
        "Qwen2",
        {**GATED, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        "model.layers",
    ),
    "qwen3": ("Qwen3", GATED, "model.layers"),
    "mistral": ("Mistral", {**GATED, "sliding_window": WINDOW}, "model.layers"),
    "gemma2": ("Gemma2", {**GATED, "sliding_window": WINDOW, "layer_types": MIXED}, "model.layers"),
    "gemma3": ("Gemma3", {**GATED, "sliding_window": WINDOW, "layer_types": MIXED}, "model.layers"),
    "gemma4": (  # the last block shares the keys of the one before
        "Gemma4",
        {
            **GATED,
            "sliding_window": WINDOW,
            "layer_types": [*MIXED[:2], "full_attention"],
            "num_kv_shared_layers": 1,
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
        },
        "model.layers",
    ),
    "gpt2": (
        "GPT2",
        {**COMMON, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, "tie_word_embeddings": False},
        "transformer.h",
    ),
    "gpt_neox": ("GPTNeoX", {**SIZES, "intermediate_size": 48}, "gpt_neox.layers"),
    "falcon": ("Falcon", SIZES, "transformer.h"),
    "falcon_alibi": ("Falcon", {**SIZES, "alibi": True}, "transformer.h"),
    "opt": ("OPT", {**SIZES, "ffn_dim": 48, "init_std": 0.3, "word_embed_proj_dim": WIDTH}, "model.decoder.layers"),
    "mixtral": (
        "Mixtral",
        {**GATED, "num_local_experts": LAYERS, "sliding_window": WINDOW},
        "model.layers",
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {**GATED, "num_experts": LAYERS, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        "model.layers",
    ),
    "gemma3_images": ("Gemma3", None, "model.language_model.layers"),
}


def tiny(name: str, attention: str = "eager"):
    """The model, in float32 and evaluation mode: do not hook it without removing the hook."""
    return _tiny(name, attention)


@cache
def _tiny(name: str, attention: str):
    prefix, arguments, _ = ARCHITECTURES[name]
    arguments = _with_images() if arguments is None else arguments
    config_class = {"Gemma3": "Gemma3TextConfig", "Gemma4": "Gemma4TextConfig"}.get(prefix, f"{prefix}Config")
    model_class = {"GPT2": "GPT2LMHeadModel"}.get(prefix, f"{prefix}ForCausalLM")
    if name == "gemma3_images":
        config_class, model_class = "Gemma3Config", "Gemma3ForConditionalGeneration"
    config = getattr(transformers, config_class)(**arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, model_class)._from_config(config, attn_implementation=attention).eval()
        for parameter in model.parameters():  # norms start at 0 or 1 and biases at 0, which hides mistakes
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


def _with_images() -> dict:
    """Gemma 3 with a vision tower of as many layers as the language model has."""
    text = ARCHITECTURES["gemma3"][1]
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "image_size": 8, "patch_size": 4,
    }  # fmt: skip
    return {"text_config": text, "vision_config": vision, "mm_tokens_per_image": 4, "image_token_index": 23}
