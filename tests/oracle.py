"""What steered logits should be: the plain Hugging Face model, one row at a time, no padding, no cache, and a torch
hook on a decoder layer that steers positions written out one by one. It steers by a stub, at rules of every kind;
`parity.oracle` steers by methods. Neither uses code of the backends."""

import torch
from models import hugging_face

from odesteer_tl.data.origin import Origin
from odesteer_tl.parity.oracle import LAYER, PROMPTS, STEPS
from odesteer_tl.parity.run import padded
from odesteer_tl.portable.edits import Edit
from odesteer_tl.portable.sites import Site

__all__ = ["LAYER", "PROMPTS", "STEPS", "padded"]

T, TOLERANCE, EFFECT = 3.0, 1e-4, 0.1


class Stub:
    """a + T (d + unit(W a)): a push that depends on the activation, so that a wrong token, row or layer shows.

    T is a number, or holds one value per batch row.
    """

    def __init__(self, d_model: int, layer: int = LAYER, seed: int = 0, **origin):
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(d_model, generator=generator)
        self.direction = direction / direction.norm()
        self.matrix = torch.randn(d_model, d_model, generator=generator)
        self.origin = Origin(d_model=d_model, layer=layer, **origin)

    def push(self, a):
        moved = a @ self.matrix.to(a)
        return self.direction.to(a) + moved / moved.norm(dim=-1, keepdim=True)

    def edits(self, T=None, *, relative_T=None, layer=None):
        site = Site(self.origin.layer if layer is None else layer)

        def apply(read, write, state):
            strength = relative_T * write.norm(dim=-1, keepdim=True) if T is None else T
            if isinstance(T, torch.Tensor) and T.ndim:
                strength = T[state.rows].unsqueeze(-1)
            return write + strength * self.push(write)

        return [Edit(site, site, apply)]


class Asking(Stub):
    """a + T (d + unit(W q)), q the activation of the prompt's last token: one push for all tokens of a prompt."""

    def __init__(self, *what, **origin):
        super().__init__(*what, **origin)
        self.asked = 0

    def edits(self, T=None, *, relative_T=None, layer=None):
        site = Site(self.origin.layer if layer is None else layer)

        def apply(read, write, state):
            strength = T[state.rows].unsqueeze(-1) if isinstance(T, torch.Tensor) and T.ndim else T
            return write + strength * read

        def of_query(query):
            self.asked += len(query)
            return self.push(query)

        return [Edit(site, site, apply, of_query)]


class Across:
    """Reads one site and writes another: adds a map of what it read."""

    def __init__(self, read: Site, write: Site, width: int = 32):
        self.stub = Stub(width)
        self.origin = self.stub.origin
        self.read, self.write = read, write

    def edits(self, T=None, *, relative_T=None, layer=None):
        return [Edit(self.read, self.write, lambda read, write, state: write + T * self.stub.push(read))]


def steered_positions(rule, prompt: int, total: int) -> list[int]:
    """The positions that a rule names in a row of `total` tokens whose first `prompt` are the prompt."""
    if isinstance(rule, slice):
        return list(range(total))[rule]
    return {
        "decoding": list(range(prompt - 1, total)),
        "generated": list(range(prompt, total)),
        "prompt": list(range(prompt)),
        "all": list(range(total)),
        "none": [],
    }[rule]


def block(hf, layer: int):
    return hf.model.layers[layer] if hasattr(hf, "model") else hf.transformer.h[layer]


@torch.no_grad()
def logits(hf, row: list[int], positions: list[int], method: Stub, T: float, query: int | None = None):
    """Logits [pos, d_vocab] of one unpadded row, steered at `positions` of the method's layer, each by what it is, or
    all by the token at `query`."""

    def hook(module, args, output):
        before = output[0] if isinstance(output, tuple) else output
        value = before.clone()
        for position in positions:
            value[0, position] += T * method.push(before[0, position if query is None else query])
        return (value, *output[1:]) if isinstance(output, tuple) else value

    handle = block(hf, method.origin.layer).register_forward_hook(hook)
    try:
        return hf(torch.tensor([row]), use_cache=False).logits[0]
    finally:
        handle.remove()


def generate(model, kind, rows, use_past_kv_cache=True):
    """The library's own generate: tokens [batch, steps] and logits [batch, steps, d_vocab] of the generated columns."""
    tokens, mask = padded(rows, model.tokenizer.pad_token_id or 0)
    if kind in ("nnsight", "huggingface"):
        out = model.generate(
            tokens, attention_mask=mask, max_new_tokens=STEPS, do_sample=False, eos_token_id=10**6, pad_token_id=0,
            use_cache=use_past_kv_cache, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        return out.sequences[:, tokens.shape[1] :], torch.stack(out.logits, dim=1)
    own = {"attention_mask": mask} if kind == "bridge" else {"prepend_bos": False}
    out = model.generate(
        tokens, max_new_tokens=STEPS, do_sample=False, stop_at_eos=False, verbose=False, padding_side="left",
        return_type="tokens", use_past_kv_cache=use_past_kv_cache, output_logits=True, **own,
    )  # fmt: skip
    return out.sequences[:, tokens.shape[1] :], torch.stack(out.logits, dim=1)


def deviations(family, rows, new, found, rule, method, strengths):
    """Per row: the largest distance of the logits found from the oracle's, and of the oracle's from no steering."""
    hf = hugging_face(family)
    for row, generated, mine, strength in zip(rows, new.tolist(), found, strengths, strict=True):
        whole, n = row + generated[:-1], len(row)
        query = n - 1 if isinstance(method, Asking) else None
        steered = logits(hf, whole, steered_positions(rule, n, len(whole)), method, strength, query)[n - 1 :]
        plain = logits(hf, whole, [], method, strength)[n - 1 :]
        yield (mine - steered).abs().nan_to_num(torch.inf).max().item(), (steered - plain).abs().max().item()


def chunks(model, kind, pieces):
    """A prompt that enters the model's KV cache piece by piece: the logits of each piece."""
    if kind == "bridge":
        cache = None
        for piece in pieces:
            found, cache = model(piece, return_type="logits_and_cache", past_key_values=cache, use_cache=True)
            yield found[0]
        return
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, 1)
    for piece in pieces:
        yield model(piece, past_kv_cache=cache)[0]


def hooked_row(row, method, T, steered):
    """(KL, a, a(T), log q) at every token of one row that is steered at some of them, by a torch hook on the model of
    transformers."""
    bare, seen, layer = hugging_face("llama"), [], method.layer

    def hook(module, inputs, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        seen.append(hidden[0].clone())
        hidden[:, steered] = method.steer(hidden[:, steered], T=T)
        seen.append(hidden[0])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    ids = torch.tensor([row])
    with torch.no_grad():
        p = bare(ids, use_cache=False).logits[0].double().log_softmax(-1)
        handle = bare.model.layers[layer].register_forward_hook(hook)
        try:
            q = bare(ids, use_cache=False).logits[0].double().log_softmax(-1)
        finally:
            handle.remove()
    return (p.exp() * (p - q)).sum(-1), *seen, q
