"""Laws of the sites of a block: z is what the attention's projection is given, in every library and architecture."""

import copy

import nnsight
import pytest
import torch
from architectures import ARCHITECTURES, WIDTH, tiny
from instances import without_shape_checks
from models import BACKENDS, KINDS, hugging_face, load, tokenizer
from oracle import EFFECT, LAYER, TOLERANCE, Stub, T, padded

import odesteer_tl as ot
from odesteer_tl.portable.sites import Site

RANDOM = ["llama", "gpt2"]
ROWS = [[1, 5, 6, 7, 9, 8, 4], [1, 8, 4], [1]]
PROJECTION = {
    "gpt2": "attn.c_proj", "gpt_neox": "attention.dense", "falcon": "self_attention.dense",
    "falcon_alibi": "self_attention.dense", "opt": "self_attn.out_proj",
}  # fmt: skip
"""Where an architecture has the output projection of a block's attention, if not at self_attn.o_proj."""


def projection(hf, name, layer=LAYER):
    blocks = ARCHITECTURES[name][2]
    return hf.get_submodule(f"{blocks}.{layer}.{PROJECTION.get(name, 'self_attn.o_proj')}")


@torch.no_grad()
def entering(hf, name, row, layer=LAYER):
    """What enters the projection [pos, width] for one unpadded row, by a torch hook."""
    seen = []
    handle = projection(hf, name, layer).register_forward_pre_hook(lambda module, args: seen.append(args[0][0].clone()))
    hf(torch.tensor([row]), use_cache=False)
    handle.remove()
    return seen[0]


class AtZ(Stub):
    """The stub at z."""

    def edits(self, T=None, *, relative_T=None, layer=None):
        (edit,) = Stub.edits(self, T, relative_T=relative_T, layer=layer)
        return [ot.Edit(Site(edit.read.layer, "z"), Site(edit.read.layer, "z"), edit.apply)]


# Reading


@pytest.fixture(scope="module", params=[(kind, family) for kind in BACKENDS for family in RANDOM], ids="-".join)
def loaded(request):
    return *request.param, load(*request.param)


@pytest.mark.parametrize("position", ["last", "mean", "all", 0])
def test_z_is_what_the_projection_is_given(loaded, position):
    _, family, model = loaded
    desired, undesired = ot.Tokenised(*padded(ROWS, 0)), torch.tensor([[4, 5]])
    acts = ot.collect(model, desired, undesired, LAYER, site="z", position=position, batch_size=2)
    alone = [entering(hugging_face(family), family, row) for row in ROWS]
    pick = {"last": lambda z: z[-1:], "mean": lambda z: z.mean(0, keepdim=True), "all": lambda z: z, 0: lambda z: z[:1]}
    torch.testing.assert_close(acts.desired, torch.cat([pick[position](z) for z in alone]), rtol=0, atol=1e-4)
    assert acts.hook_name == acts.origin.hook_name == f"blocks.{LAYER}.attn.hook_z" and acts.layer == LAYER


@pytest.mark.parametrize("site", ["z", "resid_post", "resid_pre"])
def test_several_layers_are_read_in_one_pass(loaded, site):
    kind, _, model = loaded
    texts, other = ["the film is good", "a plot"], ["dull", "slow and bad"]
    each = {layer: ot.collect(model, texts, other, layer, site=site) for layer in (0, 1, 2)}
    ran = []
    blocks = ot.backends.model_info.modules_of(model)
    # nnsight leaves the last block in its middle, a bridge when it has entered the next one.
    handles = [
        block.register_forward_pre_hook(lambda module, args, i=i: ran.append(i))
        if kind == "nnsight"
        else block.register_forward_hook(lambda module, args, out, i=i: ran.append(i))
        for i, block in enumerate(blocks)
    ]
    several = ot.collect_layers(model, texts, other, [1, 0], site=site, groups=([1, 2], [3, 4]))
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 0, 1]  # a pass for each side
    for acts, layer in zip(several, (1, 0), strict=True):
        for side in ("desired", "undesired"):
            torch.testing.assert_close(getattr(acts, side), getattr(each[layer], side), rtol=0, atol=1e-6)
        assert (acts.layer, acts.hook_name) == (layer, Site(layer, site).hook_name)
        assert acts.groups[0].tolist() == [1, 2]
    assert not torch.allclose(several[0].desired, several[1].desired, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sites_of_a_block_add_up(kind):
    model = load(kind, "gpt2")
    pre, attn, mid, mlp, post = (
        ot.collect(model, ["the film", "good"], ["bad"], LAYER, site=site).desired
        for site in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    )
    torch.testing.assert_close(pre + attn, mid, rtol=0, atol=1e-5)
    torch.testing.assert_close(mid + mlp, post, rtol=0, atol=1e-5)
    torch.testing.assert_close(pre, ot.collect(model, ["the film", "good"], ["bad"], LAYER - 1).desired)


def test_what_cannot_be_read_is_refused_by_name(loaded):
    kind, _, model = loaded
    for layers, options, said in (
        ([], {}, "No layers"),
        ([1, 1], {}, "given once"),
        ([0, 3], {}, "layers 0 to 2"),
        ([0], {"site": "resid"}, "site is one of resid_pre, z"),
    ):
        with without_shape_checks(), pytest.raises(ValueError, match=said):
            ot.collect_layers(model, "a", "the", layers, **options)
    if kind == "nnsight":
        with pytest.raises(ValueError, match="resid_pre, z and resid_post, got mlp_out"):
            ot.collect(model, "a", "the", 0, site="mlp_out")


def test_a_method_fitted_where_nothing_is_steered_is_refused():
    rows = torch.randn(2, 4, 8)
    acts = ot.ContrastiveActivations(*rows, layer=1, hook_name="blocks.1.mlp.hook_post")
    with pytest.raises(ValueError, match=r"fitted at blocks\.1\.mlp\.hook_post"):
        ot.CAA.fit(acts).edits(T=1.0)


def test_z_that_folding_moved_is_refused(loaded):
    """With biases, folded weights take a constant out of z; centred ones are refused at any site."""
    kind, family, model = loaded
    d, tokens = 32, torch.tensor([[1, 5]])
    for processing, refused in (("folded", family == "gpt2"), ("raw", False), ("unknown", False)):
        method = AtZ(d, processing=processing)
        ways = [lambda method=method: ot.generate(model, tokens, method, T, max_new_tokens=1)]

        def trace(method=method):
            with model.trace(tokens):
                ot.intervene(model, method, T)

        ways += [trace] if kind == "nnsight" else []
        for way in ways:
            if refused:
                with pytest.raises(Exception, match="fitted at z on folded weights and this model has raw ones"):
                    way()
            else:
                way()
    folded = {"llama": AtZ(d, processing="raw"), "gpt2": AtZ(d, processing="folded")}[family]
    if kind != "nnsight":  # folding leaves z of a Llama, which has no biases, and centring a GPT-2 is refused
        other = load(kind, family, compatible=True)
        if family == "llama":
            ot.generate(other, tokens, folded, T, max_new_tokens=1)
        else:
            with pytest.raises(ValueError, match="centred"):
                ot.generate(other, tokens, folded, T, max_new_tokens=1)


# Every architecture


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request):
    hf = tiny(request.param)
    return (
        request.param,
        hf,
        nnsight.TransformersModel(copy.deepcopy(hf), tokenizer=tokenizer(), task="text-generation"),
    )


def test_z_times_the_projection_is_what_attention_gives(architecture):
    name, hf, model = architecture
    rows = ot.Tokenised(*padded(ROWS, 0))
    for layer, acts in enumerate(ot.collect_layers(model, rows, torch.tensor([[4]]), range(3), site="z")):
        path = PROJECTION.get(name, "self_attn.o_proj").split(".")[0]
        attention = hf.get_submodule(f"{ARCHITECTURES[name][2]}.{layer}.{path}")
        for row, z in zip(ROWS, acts.desired, strict=True):
            given = []
            handle = attention.register_forward_hook(lambda module, args, out, given=given: given.append(out[0][0, -1]))
            with torch.no_grad():
                hf(torch.tensor([row]), use_cache=False)
                handle.remove()
                found = projection(hf, name, layer)(z.reshape(1, 1, -1))[0, 0]
            torch.testing.assert_close(found, given[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("way", ["steering", "intervene"])
def test_what_is_put_at_z_enters_the_projection(architecture, way):
    name, hf, model = architecture
    method, (tokens, mask) = AtZ(WIDTH), padded(ROWS, 0)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    if way == "steering":
        with ot.steering(model, method, T), model.trace(inputs):
            found = nnsight.save(model.output.logits[:, -1])
    else:
        with model.trace(inputs):
            ot.intervene(model, method, T)
            found = nnsight.save(model.output.logits[:, -1])

    def push(module, args):
        z = args[0].clone()
        z[:, -1] += T * method.push(z[:, -1])
        return (z, *args[1:])

    for row, mine in zip(ROWS, found, strict=True):
        with torch.no_grad():
            plain = hf(torch.tensor([row]), use_cache=False).logits[0, -1]
            handle = projection(hf, name).register_forward_pre_hook(push)
            steered = hf(torch.tensor([row]), use_cache=False).logits[0, -1]
            handle.remove()
        assert (mine - steered).abs().max() <= TOLERANCE
        assert (steered - plain).abs().max() >= EFFECT


def test_attention_without_a_known_projection_is_told_of_with_its_parts():
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.give, self.norm = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)

        def forward(self, x):
            return self.give(self.mix(self.norm(x)))

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention()

        def forward(self, x):
            return x + self.attention(x)

    inner = torch.nn.Sequential(Block(), Block())
    model = nnsight.NNsight(torch.nn.ModuleDict({"parts": inner}))
    said = r"found none in a Block, whose attention has the linear parts attention\.mix, attention\.give"
    with pytest.raises(ValueError, match=said), ot.steering(model, AtZ(8), T, blocks="parts"):
        pass


# A single hook


@pytest.mark.parametrize("positions", ["last", "all", slice(1, 3)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", RANDOM)
def test_a_plain_hook_steers_at_hook_z(kind, family, positions):
    model, hf, tokens = load(kind, family), hugging_face(family), torch.tensor([[1, 5, 6, 7], [1, 8, 4, 9]])
    acts = ot.collect(model, ["good", "the film", "fine plot"], ["bad", "a slow film", "dull"], LAYER, site="z")
    method = ot.CAA.fit(acts)
    hook = ot.steering_hook(method, T=3.0, positions=positions)
    found = model.run_with_hooks(tokens, fwd_hooks=[(acts.hook_name, hook)]).detach()
    columns = (
        {"last": slice(3, 4), "all": slice(0, 4)}.get(positions, positions) if isinstance(positions, str) else positions
    )

    def push(module, args):
        z = args[0].clone()
        z[:, columns] += 3.0 * (acts.desired.mean(0) - acts.undesired.mean(0))
        return (z, *args[1:])

    with torch.no_grad():
        plain = hf(tokens, use_cache=False).logits
        handle = projection(hf, family).register_forward_pre_hook(push)
        steered = hf(tokens, use_cache=False).logits
        handle.remove()
    assert (found - steered).abs().max() <= TOLERANCE and (steered - plain).abs().max() >= EFFECT
