"""Laws of remote steering: a server without the package does what this machine does, for every method.

The client is a user of the built wheel; what it finds on this machine, and by a torch hook, is the oracle.
"""

from pathlib import Path

import pytest
from instances import ALL_METHODS
from server_clients import client, installed_wheel, saved_model, server

STEER = """
    import numpy as np
    import odesteer_tl as ot
    from odesteer_tl import intervene
    from odesteer_tl.parity import oracle, run, table

    url, model = sys.argv[1], load(sys.argv[2])
    layers, acts = model.model.layers, oracle.activations("llama")
    T = 0.3 * acts.origin.typical_norm

    def measured(what, *arguments):
        '''How far the server is from this machine, over all tensors that `what` returns for a place to run.'''
        here, there = what(False, *arguments), what(url, *arguments)
        assert len(here) == len(there) and all(a.shape == b.shape for a, b in zip(here, there))
        return max(float((a - b).detach().abs().max()) for a, b in zip(here, there)), there

    sys.path.append(sys.argv[3])
    import instances  # a module of the user's: nnsight sends it along
    instances.planted = lambda *sizes: acts

    def helper(x, w):
        return torch.tanh(x @ w)

    class OnlyValue:
        def __init__(self):
            self.w = torch.linspace(-1, 1, 32)

        def value(self, a):
            return helper(a, self.w) - 0.05 * a.square().sum(-1)

    class WithGrad(OnlyValue):
        def grad(self, a):
            return (1 - helper(a, self.w).square()).unsqueeze(-1) * self.w - 0.1 * a

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

        def value(self, a):
            return self.layers(a).squeeze(-1)

    class Odd:
        '''A module of torch's own, a lambda, numpy, and an __init__ that imports what a server has not.'''

        def __init__(self):
            import sklearn.preprocessing

            self.network, self.bend = torch.nn.Linear(32, 1), lambda x: torch.tanh(x) + x.square()

        def value(self, a):
            return self.bend(self.network(a).squeeze(-1) + a @ torch.tensor(np.linspace(-1, 1, 32), dtype=a.dtype))

    # The flow of gradient-flow-own multiplies rounding, more or less so by processor; own-value is of its kind.
    open_gates = {"mimic": "MiMiC", "hpr": "HPR"}
    others = {"gradientflow-own", *open_gates}
    methods = {name: make() for name, make in instances.METHODS.items() if name not in others}
    methods |= {name: table.parity_rows()[row]("llama") for name, row in open_gates.items()}
    methods |= {name: table.parity_rows()[name]("llama") for name in ("ITI, heads", "RepE, layers", "A-LQR", "S-PID")}
    torch.manual_seed(0)
    own = {"own-value": OnlyValue(), "own-grad": WithGrad(), "own-module": Network(), "own-odd": Odd()}
    methods |= {name: ot.GradientFlow(barrier, layer=1) for name, barrier in own.items()}
    high = float(methods["odesteer"].barrier.value(acts.desired).max())  # so that every prompt is pushed
    methods["until"] = ot.ODESteer.fit(acts, until=high)
    rows = oracle.PROMPTS["batch"]
    tokens, mask = run.padded(rows)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": 10**6, "pad_token_id": 0}

    def own_layer(method):  # some were fitted elsewhere
        return None if method.several else 1

    def trace(remote, method, T):
        layer = own_layer(method)
        with model.trace(inputs, remote=remote):
            ot.intervene(model, method, T=T, layer=layer)
            logits = nnsight.save(model.lm_head.output[:, -1])
        return [logits]

    def generate(remote, method, T):
        layer = own_layer(method)
        with model.generate(inputs, remote=remote, **options) as tracer:
            steps = nnsight.save([])
            for _ in tracer.iter[:5]:
                intervene(model, method, T, layer=layer)
                steps.append(model.lm_head.output[:, -1])
            ids = nnsight.save(tracer.result)
        return [ids[:, -5:], torch.stack(steps, dim=1)]

    def session(remote, method, T):
        layer = own_layer(method)
        with model.session(remote=remote):
            with model.trace(inputs):
                ot.intervene(model, method, T=T, layer=layer)
                first = layers[2].output[:, -1]
            with model.trace(inputs):
                words = model.model.embed_tokens  # before every layer, as methods act at several
                words.output = words.output + 0.1 * first.unsqueeze(1)
                ot.intervene(model, method, T=T, layer=layer)
                logits = nnsight.save(model.lm_head.output[:, -1])
            first = nnsight.save(first)
        return [first, logits]

    with model.trace(inputs):
        unsteered = nnsight.save(model.lm_head.output[:, -1])

    # How a method travels is the same in a generate, whose first step is a trace, in a trace and in a session: of each
    # way to travel, one method is in all of them.
    in_all = set(sys.argv[4].split(";"))
    assert in_all <= set(methods)
    found = {}
    for name, method in methods.items():
        own = T / method.speed if method.speed else method.usual_T
        where = [(own_layer(method) or at, site, steer) for at, site, steer in oracle.places(method, own)]
        # HPR leaves one prompt as it is, so that the least effect is that on the others.
        ways = (generate, trace, session) if name in in_all else (generate,)
        off = {way.__name__: measured(way, method, own) for way in ways}
        new, steps = off["generate"][1]
        worst, effect = oracle.differences(steps, oracle.steered_and_plain("llama", rows, new, where))
        found[name] = {way: far for way, (far, _) in off.items()} | {
            "generate, hook": worst,
            "effect": min(effect, sorted((steps[:, 0] - unsteered).abs().amax(1).tolist())[name == "hpr"]),
        }
        if name in in_all:
            hooked = torch.stack([oracle.logits("llama", row, where, [len(row) - 1])[-1] for row in rows])
            found[name]["trace, hook"] = float((off["trace"][1][0] - hooked).detach().abs().max())

    a, b, push = methods["odesteer"], methods["caa"], torch.linspace(-1, 1, 32)
    b_T = T / b.speed

    def own_edits(remote):
        with model.trace(inputs, remote=remote):
            layers[0].output = layers[0].output + push
            before = nnsight.save(layers[0].output)
            ot.intervene(model, a, T=T)
            layers[1].output = layers[1].output * 1.5
            ot.intervene(model, b, T=b_T)
            layers[2].output = layers[2].output - push
            logits = nnsight.save(model.lm_head.output)
        return [before, logits]

    def invokes(remote):
        with model.trace(remote=remote) as tracer:
            with tracer.invoke({"input_ids": torch.tensor([rows[0]])}):
                ot.intervene(model, a, T=T)
                first = nnsight.save(model.lm_head.output)
            with tracer.invoke({"input_ids": torch.tensor([rows[2]])}):
                steered = nnsight.save(ot.intervene(model, [(b, b_T), (a, T)], positions="all"))
                second = nnsight.save(model.lm_head.output)
        assert steered == {1: 3}
        return [first, second]

    def directly(remote):
        with model.trace(inputs["input_ids"][:1], remote=remote):
            layers[1].output = a.steer(layers[1].output, T=T)
            logits = nnsight.save(model.lm_head.output)
        return [logits[0]]

    def by_strength(remote):
        with model.trace(inputs, remote=remote):
            ot.intervene(model, [(a, ot.Strength(relative_T=0.3)), (b, ot.Strength(b_T))])
            logits = nnsight.save(model.lm_head.output)
        return [logits]

    pushed, flowed = ot.Calibrated(b, b_T, None, kl=0.1), ot.Calibrated(a, None, 0.3, kl=0.1)

    def by_its_own_strength(remote):
        with model.trace(inputs, remote=remote):
            ot.intervene(model, [flowed, pushed])
            logits = nnsight.save(model.lm_head.output)
        return [logits]

    def by_helper(remote):
        def steer(method):
            ot.intervene(model, method, T=T)

        with model.trace(inputs, remote=remote):
            steer(a)
            logits = nnsight.save(model.lm_head.output)
        return [logits]

    composed = own_edits, invokes, directly, by_strength, by_its_own_strength, by_helper
    found["composed"] = {way.__name__: measured(way)[0] for way in composed}
    hooked = oracle.logits("llama", rows[0], oracle.places(a, T), range(len(rows[0])))
    same = by_strength(False)[0] - by_its_own_strength(url)[0]
    found["composed"]["its own strength, given"] = float(same.detach().abs().max())
    found["composed"]["directly, hook"] = float((directly(url)[0] - hooked).abs().max())

    backend = nnsight.intervention.backends.remote.RemoteBackend(model.to_model_key(), url, blocking=False)
    with model.trace(inputs, backend=backend):
        ot.intervene(model, a, T=T)
        late = nnsight.save(model.lm_head.output[:, -1])
    while (saves := backend()) is None:
        pass
    found["composed"]["not blocking"] = float((saves["late"] - trace(False, a, T)[0]).abs().max())

    texts = ["the film is good", "a plot", "it was never slow and dull"]

    def said(remote=url, **case):
        return ot.generate(model, texts, max_new_tokens=9, remote=remote, **case)

    ends = next(t for t in torch.arange(-10, 10, 0.1).tolist() if not said(False, method=a, T=t).mask.all())
    cases = {
        "T": {"method": a, "T": T, "stop_at_eos": False},
        "T per prompt": {"method": b, "T": torch.tensor([1.0, 0.0, 2.0]) * b_T},
        "relative_T": {"method": a, "relative_T": torch.tensor([0.3, 0.5, -0.3])},
        "a list": {"method": [(a, T), (b, b_T * torch.ones(3))]},
        "a list, relative_T": {"method": [(a, ot.Strength(relative_T=torch.tensor([0.3, 0.0, -0.2]))), (b, b_T)]},
        "beams": {"method": a, "T": torch.tensor([T, 2 * T, -T]), "num_beams": 2},
        "batches": {"method": a, "T": torch.tensor([T, 2 * T, -T]), "batch_size": 2},
        "no cache": {"method": a, "T": T, "use_past_kv_cache": False},
        "ends": {"method": a, "T": ends},
        "layer": {"method": a, "T": T, "layer": 0, "blocks": "model.layers"},
        "a border": {"method": b, "T": b_T, "positions": "generated", "prompt_lengths": 2},
        "borders": {"method": a, "T": T, "positions": "prompt", "prompt_lengths": [1, 2, 3], "num_beams": 2},
        "layers": {"method": methods["RepE, layers"], "T": torch.tensor([T, -T, 0.5 * T])},
        "layers, a list": {"method": [(methods["ITI, heads"], 2.0), (b, b_T)], "num_beams": 2},
        "layers, relative_T": {"method": methods["ITI, heads"], "relative_T": 0.4},
        "nothing": {},
    }
    every_other = torch.tensor([True, False] * 9)
    for rule in ("generated", "prompt", "all", slice(0, 3), every_other):
        cases[f"positions {str(rule)[:9]}"] = {"method": a, "T": T, "positions": rule}
    for name, rule in {"": every_other, " each": every_other ^ torch.tensor([[True], [False], [True]])}.items():
        cases[f"beams, a mask{name}"] = {"method": a, "T": T, "num_beams": 2, "positions": rule}
    found["generated"] = {}
    for name, case in cases.items():
        here, there = said(False, **case), said(url, **case)
        same = here.tokens.equal(there.tokens) and here.mask.equal(there.mask) and here.texts == there.texts
        found["generated"][name] = bool(same and vars(here.report or ot) == vars(there.report or ot))
    found["effect"] = not said(method=a, T=T).tokens.equal(said().tokens)
    found["stops"] = not said(method=a, T=ends).mask.all()
    first, again, other = (said(method=a, T=T, do_sample=True, seed=seed).tokens for seed in (1, 1, 2))
    found["sampled"] = [first.equal(again), first.equal(other)]

    def count(module, args):
        module.ran = getattr(module, "ran", 0) + 1

    with model.trace("the film", remote=url):
        layers[2]._module.register_forward_pre_hook(count)
    found["collected"] = {
        str(position): measured(lambda remote: [
            getattr(acts, side)
            for site in ("resid_post", "z")
            for acts in ot.collect_layers(model, texts, texts[:2], [1, 0], site=site, position=position, remote=remote)
            for side in ("desired", "undesired")
        ])[0]
        for position in ("last", "mean", "all", 0, -2)
    }
    with model.trace("the film", remote=url):
        ran = nnsight.save(layers[2]._module.ran)
        layers[2]._module._forward_pre_hooks.clear()
    found["ran"] = ran
    report(**found)
"""

IN_ALL = ["odesteer", "caa", "linearact", "mimic", "truthflow", "own-module", "ITI, heads", "A-LQR"]
SEVERAL = ["ITI, heads", "RepE, layers", "A-LQR", "S-PID"]
OWN = ["own-value", "own-grad", "own-module", "own-odd"]
UNTIL = ["until"]  # walks that end at a level


@pytest.fixture(scope="module")
def found():
    tests = Path(__file__).parents[1]
    return client(STEER, installed_wheel(), server().url, saved_model("llama"), tests, ";".join(IN_ALL))


@pytest.mark.parametrize("name", [*(n for n in ALL_METHODS if n != "gradientflow-own"), *OWN, *UNTIL, *SEVERAL])
def test_every_method_steers_there_as_here_and_as_a_hook(found, name):
    measured = dict(found[name])
    assert measured.pop("effect") >= 0.1
    assert len(measured) == (5 if name in IN_ALL else 2) and max(measured.values()) <= 1e-4, measured


def test_it_composes_with_the_users_own_edits_invokes_and_functions(found):
    assert len(found["composed"]) == 9 and max(found["composed"].values()) <= 1e-4, found["composed"]


def test_generate_continues_and_reports_as_here(found):
    assert len(found["generated"]) == 23 and all(found["generated"].values()), found["generated"]
    assert found["effect"] and found["stops"]
    assert found["sampled"] == [True, False]


def test_collect_reads_what_is_read_here_and_runs_no_later_layer(found):
    assert max(found["collected"].values()) <= 1e-5, found["collected"]
    assert found["ran"] == 1  # by the request that began to count, and by none of the twenty that collected
