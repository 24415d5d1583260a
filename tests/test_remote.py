"""Laws of remote steering: a server without the package does what this machine does, or nothing comes back.

The clients are users of the built wheel; what they measure here, locally and by a torch hook, is the oracle.
"""

from pathlib import Path

import pytest
from instances import ALL_METHODS
from remote import client, installed_wheel, saved_model, serving

COMMON = """
    import socket, urllib.request
    import odesteer_tl as ot
    from odesteer_tl import intervene
    from odesteer_tl.backends.nnsight import asking
    from odesteer_tl.parity import oracle, running

    url, model = sys.argv[1], load(sys.argv[2])
    layers, acts = model.model.layers, oracle.activations("llama")
    T = 0.3 * acts.origin.typical_norm

    def measured(what, *arguments):
        '''How far the server is from this machine, over all tensors that `what` returns for a place to run.'''
        here, there = what(False, *arguments), what(url, *arguments)
        assert len(here) == len(there) and all(a.shape == b.shape for a, b in zip(here, there))
        return max(float((a - b).detach().abs().max()) for a, b in zip(here, there)), there

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
"""

STEER = """
    sys.path.append(sys.argv[3])
    import instances  # a module of the user's: nnsight sends it along
    instances.planted = lambda: acts
    methods = {name: make() for name, make in instances.METHODS.items()}
    methods |= {"own-value": ot.GradientFlow(OnlyValue(), layer=1), "own-grad": ot.GradientFlow(WithGrad(), layer=1)}
    rows = oracle.PROMPTS["batch"]
    tokens, mask = running.padded(rows)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": 10**6, "pad_token_id": 0}

    def plain():
        with model.trace(inputs):
            logits = nnsight.save(model.lm_head.output[:, -1])
        return logits

    def trace(remote, method, T):
        with model.trace(inputs, remote=remote):
            ot.intervene(model, method, T=T, layer=1)
            logits = nnsight.save(model.lm_head.output[:, -1])
        return [logits]

    def generate(remote, method, T):
        with model.generate(inputs, remote=remote, **options) as tracer:
            steps = nnsight.save([])
            for _ in tracer.iter[:5]:
                intervene(model, method, T, layer=1)
                steps.append(model.lm_head.output[:, -1])
            ids = nnsight.save(tracer.result)
        return [ids[:, -5:], torch.stack(steps, dim=1)]

    def session(remote, method, T):
        with model.session(remote=remote):
            with model.trace(inputs):
                ot.intervene(model, method, T=T, layer=1)
                first = layers[2].output[:, -1]
            with model.trace(inputs):
                layers[0].output = layers[0].output + 0.1 * first.unsqueeze(1)
                ot.intervene(model, method, T=T, layer=1)
                logits = nnsight.save(model.lm_head.output[:, -1])
            first = nnsight.save(first)
        return [first, logits]

    found = {}
    for name, method in methods.items():
        own = T / (method.speed or 1.0)
        steer = lambda a: method.steer(a, own)
        off = {way.__name__: measured(way, method, own) for way in (trace, generate, session)}
        (logits,), (new, steps) = off["trace"][1], off["generate"][1]
        hooked = torch.stack([oracle.logits("llama", row, steer, [len(row) - 1])[-1] for row in rows])
        worst, effect = oracle.differences("llama", rows, new, steps, steer)
        found[name] = {way: far for way, (far, _) in off.items()} | {
            "trace, hook": float((logits - hooked).detach().abs().max()), "generate, hook": worst,
            "effect": min(effect, float((logits - plain()).abs().amax(1).min())),
        }

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
        with model.trace(inputs, remote=remote):
            layers[1].output = a.steer(layers[1].output, T=T)
            logits = nnsight.save(model.lm_head.output)
        return [logits[:, -1]]

    def everywhere(remote):
        with model.trace(inputs, remote=remote):
            ot.intervene(model, a, T=T, positions=slice(0, None))
            logits = nnsight.save(model.lm_head.output)
        return [logits[:, -1]]

    def by_helper(remote):
        def steer(method):
            ot.intervene(model, method, T=T)

        with model.trace(inputs, remote=remote):
            steer(a)
            logits = nnsight.save(model.lm_head.output)
        return [logits]

    ways = (own_edits, invokes, directly, everywhere, by_helper)
    found["composed"] = {way.__name__: measured(way)[0] for way in ways}
    found["composed"]["steer"] = float((directly(url)[0] - everywhere(url)[0]).abs().max())

    backend = nnsight.intervention.backends.remote.RemoteBackend(model.to_model_key(), url, blocking=False)
    with model.trace(inputs, backend=backend):
        ot.intervene(model, a, T=T)
        late = nnsight.save(model.lm_head.output[:, -1])
    while (saves := backend()) is None:
        pass
    found["composed"]["not blocking"] = float((saves["late"] - trace(False, a, T)[0]).abs().max())

    try:
        with model.trace(inputs, remote=url):
            ot.generate(model, "the film", a, T)
    except Exception as error:
        found["not there"] = str(error)

    texts = ["the film is good", "a plot", "it was never slow and dull"]
    ends = next(s for s in torch.arange(-200, 200) / 20 if not ot.generate(model, texts, a, s, max_new_tokens=9).mask.all())
    cases = {
        "T": {"method": a, "T": T, "stop_at_eos": False},
        "T per prompt": {"method": b, "T": torch.tensor([1.0, 0.0, 2.0]) * b_T},
        "relative_T": {"method": a, "relative_T": torch.tensor([0.3, 0.5, -0.3])},
        "a list": {"method": [(a, T), (b, b_T * torch.ones(3))]},
        "beams": {"method": a, "T": torch.tensor([T, 2 * T, -T]), "num_beams": 2},
        "batches": {"method": a, "T": torch.tensor([T, 2 * T, -T]), "batch_size": 2},
        "no cache": {"method": a, "T": T, "use_past_kv_cache": False},
        "ends": {"method": a, "T": ends},
        "layer": {"method": a, "T": T, "layer": 0, "blocks": "model.layers"},
        "nothing": {},
    }
    for rule in ("generated", "prompt", "all", slice(0, 3), torch.tensor([True, False] * 9)):
        cases[f"positions {str(rule)[:9]}"] = {"method": a, "T": T, "positions": rule}
    found["generated"] = {}
    for name, case in cases.items():
        here, there = (ot.generate(model, texts, max_new_tokens=9, remote=remote, **case) for remote in (False, url))
        same = here.tokens.equal(there.tokens) and here.mask.equal(there.mask) and here.texts == there.texts
        found["generated"][name] = bool(same and vars(here.report or ot) == vars(there.report or ot))
    found["effect"] = not here.tokens.equal(ot.generate(model, texts, a, T, max_new_tokens=9, remote=url).tokens)
    found["stops"] = not ot.generate(model, texts, a, ends, max_new_tokens=9, remote=url).mask.all()
    seeds = [ot.generate(model, texts, a, T, do_sample=True, seed=s, max_new_tokens=9, remote=url).tokens for s in (1, 1, 2)]
    found["sampled"] = [seeds[0].equal(seeds[1]), seeds[0].equal(seeds[2])]

    def count(module, args):
        module.ran = getattr(module, "ran", 0) + 1

    with model.trace("the film", remote=url):
        layers[2]._module.register_forward_pre_hook(count)
    found["collected"] = {
        str(position): measured(lambda remote: [
            getattr(ot.collect(model, texts, texts[:2], layer=1, position=position, remote=remote), side)
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

FAIL = """
    import dataclasses
    from sklearn.preprocessing import normalize

    method, url = ot.ODESteer.fit(acts), sys.argv[1]
    asking.PATIENCE = 1

    def generated(method, url):
        return ot.generate(model, "the film is", method, T, max_new_tokens=3, remote=url).texts

    def collected(method, url):
        return ot.collect(model, "the film", "a plot", layer=1, remote=url).desired

    def traced(method, url):
        logits = None
        try:
            with model.trace("the film is", remote=url):
                ot.intervene(model, method, T=T)
                logits = nnsight.save(model.lm_head.output)
        finally:
            assert logits is None or url is sys.argv[1], "unsteered values"
        return logits

    def outcome(what, method, url=url):
        try:
            what(method, url)
        except Exception as error:
            return [type(error).__name__, str(error)]
        return ["", ""]

    def requests():
        with urllib.request.urlopen(url + "/last") as answer:
            return json.load(answer)["count"]

    silent = socket.create_server(("127.0.0.1", 0))
    places = {"silent": f"http://127.0.0.1:{silent.getsockname()[1]}"}
    with socket.create_server(("127.0.0.1", 0)) as gone:
        places["gone"] = f"http://127.0.0.1:{gone.getsockname()[1]}"
    found = {}
    for kind in ("error", "drop", "close", "refuse", "drop_result"):
        found[kind] = {}
        for what in (generated, collected, traced):
            urllib.request.urlopen(url + "/fault", json.dumps({"kind": kind}).encode())
            found[kind][what.__name__] = outcome(what, method)
    for name, place in places.items():
        ways = (generated, collected) if name == "silent" else (generated, collected, traced)
        found[name] = {what.__name__: outcome(what, method, place) for what in ways}
    found["after"] = [outcome(what, method)[0] for what in (generated, collected, traced)]

    @dataclasses.dataclass
    class Data:
        w: float = 1.0

        def value(self, a):
            return self.w * a[..., 0]

    class Importing:
        def value(self, a):
            return torch.as_tensor(normalize(a.numpy())).sum(-1)

    class Half:
        order = 1

        def step(self, field, a, dt):
            return a + 0.5 * dt * field(a)

    class OwnField(type(method).__mro__[1]):
        barrier, origin = None, acts.origin
        flow = ot.Flow(lambda a: a)

    class OwnSolver(OwnField):
        flow = ot.Flow(ot.Constant(torch.ones(32)), Half())

    refused = {"dataclass": ot.GradientFlow(Data(), layer=1), "sklearn": ot.GradientFlow(Importing(), layer=1)}
    refused |= {"field": OwnField(), "solver": OwnSolver()}
    before = requests()
    found["refused"] = {
        name: {what.__name__: outcome(what, each) for what in (generated, traced)} for name, each in refused.items()
    }
    report(**found, sent=requests() - before)
"""
