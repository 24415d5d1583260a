"""GGUF files, written here from models of known weights: what is loaded has their logits, in every library."""

import sys

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import odesteer_tl as ot

WORDS = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "th", "<s>", "</s>"]
LIBRARIES = ("huggingface", "transformer_lens", "nnsight")
TOKENS = torch.tensor([[28, 19, 7, 4, 26, 3], [28, 1, 2, 3, 4, 5]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=28, eos_token_id=29, pad_token_id=29,
        rms_norm_eps=1e-5, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of a query or key map in the order of llama.cpp, whose rotary pairs are neighbours."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def write(path, model, kind=gguf.GGMLQuantizationType.F32, architecture="llama"):
    """The model as llama.cpp holds it, its matrices as `kind`. Returns the weights that a reader gets back."""
    config, weights = model.config, {}
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(3)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([1] * (len(WORDS) - 2) + [3, 3])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(28)
    writer.add_eos_token_id(29)
    writer.add_pad_token_id(29)
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    names |= {f"model.layers.{n}.{own}": f"blk.{n}.{theirs}" for n in range(3) for own, theirs in parts.items()}
    for name, value in model.state_dict().items():
        own = name.removesuffix(".weight")
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(own.split(".")[-1])
        rows = (value if heads is None else interleaved(value, heads)).numpy()
        how = kind if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(rows, how)
        writer.add_tensor(f"{names[own]}.weight", packed, raw_dtype=how)
        back = torch.from_numpy(np.array(gguf.quants.dequantize(packed, how)))
        halves = None if heads is None else back.reshape(heads, value.shape[0] // heads // 2, 2, -1).transpose(1, 2)
        weights[name] = back if halves is None else halves.reshape(value.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0])
@pytest.mark.parametrize("library", LIBRARIES)
def test_logits_are_those_of_the_dequantised_weights(model, tmp_path, library, kind):
    weights = write(tmp_path / "tiny.gguf", model, kind)
    right = LlamaForCausalLM(model.config).eval()
    right.load_state_dict(weights)
    assert (torch.equal(right(TOKENS).logits, model(TOKENS).logits)) == (kind == gguf.GGMLQuantizationType.F32)
    loaded = ot.load_model(tmp_path / "tiny.gguf", library=library)
    if library == "nnsight":
        with loaded.trace(TOKENS):
            logits = loaded.lm_head.output.save()
    else:
        logits = getattr(loaded(TOKENS), "logits", loaded(TOKENS))
    torch.testing.assert_close(logits, right(TOKENS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_texts_are_read_steered_and_generated(model, tmp_path, library):
    write(tmp_path / "tiny.gguf", model)
    loaded = ot.load_model(tmp_path / "tiny.gguf", library=library)
    acts = ot.collect(loaded, ["the cat", "a dog"], ["hot", "cold"], layer=1)
    method = ot.CAA.fit(acts)
    plain, steered = ot.generate(loaded, ["the"]), ot.generate(loaded, ["the"], method, 20.0)
    assert steered.report is not None and steered.report.tokens_steered[1] > 0
    assert plain.texts != steered.texts


def test_what_was_loaded_is_saved_as_a_folder(model, tmp_path):
    write(tmp_path / "tiny.gguf", model)
    loaded = ot.load_model(tmp_path / "tiny.gguf", library="huggingface")
    loaded.save_pretrained(tmp_path / "folder")
    loaded.tokenizer.save_pretrained(tmp_path / "folder")
    again = ot.load_model(tmp_path / "folder", library="huggingface")
    assert torch.equal(again(TOKENS).logits, loaded(TOKENS).logits)
    assert again.tokenizer("the cat").input_ids == loaded.tokenizer("the cat").input_ids


def test_dtype_is_the_one_asked_for(model, tmp_path):
    write(tmp_path / "tiny.gguf", model, gguf.GGMLQuantizationType.Q8_0)
    assert ot.load_model(tmp_path / "tiny.gguf", dtype=torch.bfloat16, library="huggingface").dtype == torch.bfloat16


@pytest.mark.parametrize("library", LIBRARIES)
def test_files_that_cannot_be_read_are_refused(model, tmp_path, library):
    file = tmp_path / "tiny.gguf"
    with pytest.raises(ValueError, match=r"There is no file .*tiny.gguf"):
        ot.load_model(file, library=library)
    file.write_bytes(b"PK\x03\x04 not this")
    with pytest.raises(ValueError, match="is no GGUF file: it does not begin with the letters GGUF"):
        ot.load_model(file, library=library)
    write(file, model)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"tiny.gguf cannot be read by transformers \d.*may be damaged"):
        ot.load_model(file, library=library)
    write(file, model, architecture="unheardof")
    with pytest.raises(ValueError, match=r"cannot be read by transformers .*unheardof"):
        ot.load_model(file, library=library)


def test_without_the_package_that_reads_it_the_remedy_is_said(model, tmp_path, monkeypatch):
    """That nothing else imports it, tests/test_public_api.py says."""
    write(tmp_path / "tiny.gguf", model)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"To read tiny.gguf, install gguf: pip install 'odesteer_tl\[gguf\]'.$"):
        ot.load_model(str(tmp_path / "tiny.gguf"))
