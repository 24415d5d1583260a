"""Train a small Llama and its tokenizer on film reviews: the recipe of the embedded model.

    python scripts/make_model.py --reviews FOLDER --out FOLDER [--minutes 45]
    python scripts/make_model.py --measure MODEL_FOLDER --reviews FILE_OR_FOLDER

Reviews are read from every `*.jsonl.gz` of the folder (a JSON object with "text" per line), or from one file, either
such a one or plain text with a review per line. One review in a hundred is held out; its perplexity is printed at the
end. With `--measure` nothing is trained: the perplexity of a finished model on all that is given is printed.
"""

import argparse
import gzip
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch

END = "<|endoftext|>"
"""The one special token, id 0, put before every review: BOS, EOS and pad at once."""


def read_texts(source: Path) -> list[str]:
    """Reviews of a file or of a folder's `*.jsonl.gz`, each text once."""
    files = sorted(source.glob("*.jsonl.gz")) if source.is_dir() else [source]
    if not files:
        raise ValueError(f"{source} holds no *.jsonl.gz file of reviews")
    texts: list[str] = []
    for file in files:
        if file.suffix == ".gz":
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                texts.extend(json.loads(line)["text"] for line in lines)
        else:
            texts.extend(file.read_text(encoding="utf-8").splitlines())
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))


def train_tokenizer(texts: list[str], vocabulary: int, length: int) -> Any:
    """Byte-level BPE with `vocabulary` entries, as a tokenizer that `transformers` saves and loads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END, model_max_length=length
    )


def chunks(texts: list[str], tokenizer: Any, length: int) -> torch.Tensor:
    """All texts end to end, token 0 before each, cut into rows `[n, length]`; the remainder is dropped."""
    stream: list[int] = []
    for start in range(0, len(texts), 1000):
        for ids in tokenizer(texts[start : start + 1000], verbose=False)["input_ids"]:
            stream.append(0)
            stream.extend(ids)
    rows = len(stream) // length
    return torch.tensor(stream[: rows * length], dtype=torch.int32).view(rows, length)


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, texts: list[str], length: int = 128) -> tuple[float, int]:
    """exp of the mean loss per token, and the number of tokens: the first `length` of each text, token 0 before it."""
    loss, count = 0.0, 0
    for ids in tokenizer(texts, verbose=False)["input_ids"]:
        row = torch.tensor([[0, *ids][:length]])
        if row.shape[1] > 1:
            loss += model(row, labels=row).loss.item() * (row.shape[1] - 1)
            count += row.shape[1] - 1
    return math.exp(loss / count), count


def train(texts: list[str], args: argparse.Namespace) -> tuple[Any, Any]:
    """Tokenizer and model, trained until `args.minutes` of wall time or `args.steps` updates have passed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(texts, args.vocabulary, args.context)
    data = chunks(texts, tokenizer, args.length)
    if not len(data):
        raise ValueError(f"the reviews give less than one sequence of {args.length} tokens")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.width,
        intermediate_size=args.mlp,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        max_position_embeddings=args.context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.95), weight_decay=0.1)
    order = torch.randperm(len(data))
    begin, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        # Linear warm-up over the first fiftieth of the run, cosine down to a twentieth of the peak.
        rate = args.rate * min(1.0, (done + 1e-3) * 50) * (0.525 + 0.475 * math.cos(math.pi * done))
        for group in optimiser.param_groups:
            group["lr"] = rate
        rows = order[torch.arange(step * args.batch, (step + 1) * args.batch) % len(data)]
        batch = data[rows].long()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(batch, labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        done = (time.monotonic() - begin) / (60 * args.minutes)
        if args.steps:
            done = max(done, step / args.steps)
        if step % 100 == 0:
            print(f"{100 * done:5.1f} %  step {step}  loss {loss.item():.3f} nats per token", flush=True)
    return model.eval(), tokenizer


def main(arguments: list[str] | None = None) -> float:
    """Run the command line; returns the perplexity it prints."""
    parser = argparse.ArgumentParser(description="Train a small Llama and its tokenizer on film reviews.")
    parser.add_argument("--reviews", type=Path, required=True, help="folder of *.jsonl.gz, or one file")
    parser.add_argument("--out", type=Path, help="folder to write the model to")
    parser.add_argument("--measure", type=Path, metavar="MODEL", help="train nothing, print this model's perplexity")
    parser.add_argument("--limit", type=int, default=2000, help="at most so many texts are measured")
    parser.add_argument("--minutes", type=float, default=45.0, help="wall time of training")
    parser.add_argument("--steps", type=int, default=0, help="stop after so many updates; 0: only the time counts")
    sizes = {"vocabulary": 4096, "width": 256, "layers": 6, "heads": 8, "mlp": 688, "length": 128, "context": 512}
    for name, size in {**sizes, "batch": 32, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    args = parser.parse_args(arguments)
    if (args.out is None) == (args.measure is None):
        parser.error("give either --out, to train, or --measure")

    texts = read_texts(args.reviews)
    random.Random(args.seed).shuffle(texts)
    if args.measure:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(args.measure, dtype=torch.float32).eval()
        tokenizer, held_out = AutoTokenizer.from_pretrained(args.measure), texts
    else:
        split = max(1, len(texts) // 100)
        held_out = texts[:split]
        with torch.random.fork_rng(devices=[]):  # a caller's own random numbers stay as they were
            model, tokenizer = train(texts[split:], args)
        # Saved in half precision; what is measured is what was saved.
        model.half().save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)
        model.float()
    value, count = perplexity(model, tokenizer, held_out[: args.limit], args.length)
    print(f"perplexity {value:.1f} ({math.log(value):.2f} nats per token) on {count:,} tokens", flush=True)
    return value


if __name__ == "__main__":
    main()
