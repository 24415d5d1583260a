"""Laws of remote steering that fails: what cannot travel is not sent, what goes wrong has a clear error, and nothing
that was not steered comes back.

The client is a user of the built wheel; the server fails as it is told.
"""

import re

import pytest
from server_clients import client, installed_wheel, saved_model, serving

FAIL = """
    import dataclasses, functools, socket, typing, urllib.request
    from sklearn.preprocessing import normalize
    import odesteer_tl as ot
    from odesteer_tl.backends.nnsight import server_requests
    from odesteer_tl.evaluation.divergence import SteeredTexts
    from odesteer_tl.methods.flow_method import FlowMethod
    from odesteer_tl.parity import oracle, run

    url, model, acts = sys.argv[1], load(sys.argv[2]), oracle.activations("llama")
    method, T = ot.ODESteer.fit(acts), 3.0
    server_requests.CONNECT_TIMEOUT = 1

    def generated(method, url):
        return ot.generate(model, "the film is", method, T, max_new_tokens=3, remote=url).texts

    def collected(method, url):
        return ot.collect(model, "the film", "a plot", layer=1, remote=url).desired

    def measured(method, url):
        texts = SteeredTexts.given(model, [torch.tensor([1, 5, 6, 7])], torch.tensor([2]), remote=url)
        return texts.divergences(lambda value: [(method, ot.Strength(value))], [T], 4)

    def calibrated(method, url):
        return ot.calibrate(model, method, "the film is", max_new_tokens=3, remote=url)

    def traced(method, url):
        logits, why = None, None
        try:
            with model.trace("the film is", remote=url):
                ot.intervene(model, method, T=T)
                logits = nnsight.save(model.lm_head.output)
        except Exception as error:
            why = error
        assert logits is None or expected
        if why is not None:
            raise why

    def absent(method, url):
        with model.trace("the film is", remote=url):
            ot.generate(model, "the film", method, T)

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
    found, expected = {}, False
    for kind in ("error", "drop", "close", "refuse", "drop_result"):
        found[kind] = {}
        for what in (generated, collected, measured, traced):
            urllib.request.urlopen(url + "/fault", json.dumps({"kind": kind}).encode())
            found[kind][what.__name__] = outcome(what, method)
    for name, place in places.items():
        ways = (generated, collected, measured) if name == "silent" else (generated, collected, measured, traced)
        found[name] = {what.__name__: outcome(what, method, place) for what in ways}
    expected = True
    found["after"] = [outcome(what, method)[0] for what in (generated, collected, measured, calibrated, traced)]
    expected = False
    found["absent"] = outcome(absent, method)

    @dataclasses.dataclass
    class Data:
        w: float = 1.0

        def value(self, a):
            return self.w * a[..., 0]

    class Importing:
        def value(self, a):
            return torch.as_tensor(normalize(a.numpy())).sum(-1)

    def doubled(function):
        @functools.wraps(function)
        def twice(self, a):
            return 2 * function(self, a)

        return twice

    class Decorated:
        @doubled
        def value(self, a):
            return a[..., 0]

    class Annotated:
        def value(self, a, k: typing.Optional[int] = None):
            return a[..., 0]

    class Half:
        order = 1

        def step(self, field, a, dt):
            return a + 0.5 * dt * field(a)

    class OwnField(FlowMethod):
        barrier, origin = None, acts.origin
        flow = ot.Flow(lambda a: a)

    class OwnSolver(OwnField):
        flow = ot.Flow(ot.Constant(torch.ones(32)), Half())

    refused = {"dataclass": ot.GradientFlow(Data(), layer=1), "sklearn": ot.GradientFlow(Importing(), layer=1)}
    refused |= {"decorator": ot.GradientFlow(Decorated(), layer=1), "annotation": ot.GradientFlow(Annotated(), layer=1)}
    refused |= {"field": OwnField(), "solver": OwnSolver()}
    before = requests()
    found["refused"] = {
        name: {what.__name__: outcome(what, each) for what in (generated, calibrated, traced)}
        for name, each in refused.items()
    }
    sent, model = requests() - before, run.as_nnsight(run.hugging_face("llama"), run.tokenizer())
    found["nameless"] = outcome(generated, method)
    report(**found, sent=sent)
"""

FAULTS = {  # what these verbs raise, and the words that say why
    "error": ("RuntimeError", "could not run the request, and nothing came back: RuntimeError: a fault on demand"),
    "refuse": ("RuntimeError", "nnsight 0.7 required, got 0."),
    "drop_result": ("RuntimeError", "sent back no "),
    "drop": ("ConnectionError", "Connection to remote host was lost. Ask again"),
    "close": ("ConnectionError", "ended before the reply was complete, and nothing came back. Try again"),
    "gone": ("ConnectionError", "Connection refused. Ask again, or check the address"),
    "silent": ("ConnectionError", "Connection timed out. Ask again, or check the address"),
}


@pytest.fixture(scope="module")
def failed():
    with serving() as server:
        return client(FAIL, installed_wheel(), server.url, saved_model("llama"))


@pytest.mark.parametrize("what", ["generated", "collected", "measured"])
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_fails_is_one_of_two_errors_that_say_why(failed, fault, what):
    kind, why = failed[fault][what]
    assert kind == FAULTS[fault][0] and FAULTS[fault][1] in why, why


def test_in_the_users_own_trace_the_libraries_errors_come_through(failed):
    """Each call has checked that nothing was saved. A lost result leaves the names as they were, without an error."""
    known = {"error": "RemoteError", "refuse": "RemoteError", "drop": "WebSocketConnectionClosedException"}
    known |= {"close": "ValidationError", "drop_result": "", "gone": "ConnectionRefusedError"}
    assert {fault: failed[fault]["traced"][0] for fault in known} == known


def test_the_server_goes_on(failed):
    assert failed["after"] == [""] * 5


@pytest.mark.parametrize("what", ["generated", "calibrated", "traced"])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dataclass", "source cannot be found .*dataclass"),
        ("sklearn", "the server has no module sklearn"),
        ("decorator", "`value` is decorated with @doubled"),
        ("annotation", "begin the file with `from __future__ import annotations`"),
        ("field", "The field function cannot be sent"),
        ("solver", "The solver Half cannot be sent"),
    ],
)
def test_what_cannot_travel_is_refused_before_anything_is_sent(failed, name, why, what):
    kind, said = failed["refused"][name][what]
    assert kind == "ValueError" and re.search(why, said), said
    assert failed["sent"] == 0


def test_what_of_the_package_is_not_there_is_named(failed):
    kind, said = failed["absent"]
    assert kind == "RemoteError" and "ot.generate is not sent to the server: inside a remote trace use" in said


def test_a_model_without_a_name_on_the_hub_is_refused(failed):
    assert failed["nameless"][0] == "ValueError" and "by its name on the Hugging Face Hub" in failed["nameless"][1]
