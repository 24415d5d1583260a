"""lm-evaluation-harness: unsteered numbers are those of its own `hf`, steered ones those of a torch hook."""

import copy
import json
import logging
from types import SimpleNamespace

import lm_eval
import pytest
from harnesses import LAYER, TEMPLATE, Stub, T, expected, fitted, greedy, lines, model_of
from instances import without_shape_checks
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from models import EVERY, hugging_face, tokenizer

import odesteer_tl as ot
from odesteer_tl.integrations.fingerprint import fingerprint
from odesteer_tl.integrations.lm_eval import ODESteerLM
from odesteer_tl.integrations.lm_eval.command import main
from odesteer_tl.integrations.steered_model import SteeredModel

PAIRS = [
    ("the film is", " good"), ("the film is", " never bad and dull"), ("", "a plot"), ("we saw it and", " it was slow"),
    ("a", " great"), ("<s> truly the", " film was"), ("it was ", "fine"),
]  # fmt: skip
TEXTS = ["the film is good", "a", " ".join(["we saw a film and it was great but slow"] * 9)]  # 81 tokens of at most 64
WAYS = [(kind, family) for kind in EVERY for family in ("llama", "gpt2")]
CLOSE = 1e-4


def requests(arguments):
    return [SimpleNamespace(args=args, task_name="mine") for args in arguments]


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def way(request):
    return request.param


def own(family):
    return HFLM(pretrained=hugging_face(family), tokenizer=tokenizer(), batch_size=3)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_unsteered_numbers_are_those_of_hf(way, batch_size):
    ours, theirs = ODESteerLM(model_of(*way), batch_size=batch_size), own(way[1])
    for one, other in zip(ours.loglikelihood(requests(PAIRS)), theirs.loglikelihood(requests(PAIRS)), strict=True):
        assert one[0] == pytest.approx(other[0], abs=CLOSE) and one[1] == other[1]
    texts = requests([(text,) for text in TEXTS])
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), abs=CLOSE)
    assert ours.max_length == theirs.max_length == 64
    assert ours.prefix_token_id == theirs.prefix_token_id and ours.eot_token_id == theirs.eot_token_id


UNTIL = [
    {"until": ["<never>"], "max_gen_toks": 20},
    {"until": [" film", "slow"], "max_gen_toks": 40, "do_sample": False, "temperature": 0.0},
    {"until": "a", "max_gen_toks": 5},
]


def test_unsteered_texts_are_those_of_hf(way):
    asked = requests([(text, UNTIL[n % 3]) for n, (text, _) in enumerate(PAIRS) if text])
    asked += requests([(text, given) for text in ("we saw", "it") for given in UNTIL])
    ours = ODESteerLM(model_of(*way), batch_size=2).generate_until(asked)
    theirs = HFLM(pretrained=hugging_face(way[1]), tokenizer=tokenizer(), batch_size=1).generate_until(asked)
    assert ours == theirs
    assert len(set(ours)) > 4


@pytest.mark.parametrize("rule", ["decoding", "prompt", "all", "1:3"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_steered_numbers_are_those_of_a_hook(way, rule, batch_size):
    lm = ODESteerLM(model_of(*way), Stub(32), T=T, positions=rule, batch_size=batch_size)
    pairs = [pair for pair in PAIRS if pair[0]]
    found = lm.loglikelihood(requests(pairs))
    place = slice(1, 3) if ":" in rule else rule
    for (context, answer), (value, _) in zip(pairs, found, strict=True):
        tokens = lm._encode_pair(context, answer)
        assert value == pytest.approx(expected(way[1], *tokens, place, Stub(32)), abs=CLOSE)


def test_steered_texts_are_those_of_a_hook(way):
    """Over several pieces, in batches with pads, up to a stop string."""
    lm = ODESteerLM(model_of(*way), Stub(32), T=T, batch_size=4)
    words = lm.tokenizer
    contexts = ["the film is", "a", "we saw it and it was good", "truly"]
    plain = [greedy(way[1], lm.tok_encode(text), 40, Stub(32)) for text in contexts]
    found = lm.generate_until(requests([(text, {"until": [], "max_gen_toks": 40}) for text in contexts]))
    assert found == [words.decode(row, skip_special_tokens=True) for row in plain]
    last = next(n for n in range(3, 40) if plain[0][n] > 3 and plain[0][n] not in plain[0][:n])
    word = words.decode([plain[0][last]])
    found = lm.generate_until(requests([(contexts[0], {"until": [word], "max_gen_toks": 40})]))
    assert found == [words.decode(plain[0][:last], skip_special_tokens=True)]
    said = lm.get_model_info()["odesteer"]
    assert said["requests_without_steering"] == 0 and said["layers"] == [LAYER] and said["tokens_steered"] > 50
    moved = sum(len(row) for row in plain)  # the last prompt token, and all that was written but the last
    assert said["by_kind"]["generate_until"]["tokens_steered"] == moved + last + 1


def test_rolling_steers_every_token_but_the_last(way):
    lm = ODESteerLM(model_of(*way), Stub(32), T=T)
    row = lm.tok_encode(TEXTS[0])
    assert lm.loglikelihood_rolling(requests([(TEXTS[0],)])) == pytest.approx(
        [expected(way[1], [1], row, "decoding", Stub(32))], abs=CLOSE
    )
    assert lm.get_model_info()["odesteer"]["tokens_steered"] == len(row)


class Caught(logging.Handler):
    def __init__(self):
        super().__init__()
        self.said = []

    def emit(self, record):
        self.said.append((record.levelname, record.getMessage()))


@pytest.fixture
def log():
    handler, logger = Caught(), logging.getLogger("lm_eval")
    logger.addHandler(handler)
    yield handler.said
    logger.removeHandler(handler)


def test_no_token_steered_is_an_error_in_the_log_and_counted(log):
    """One token after its context: it predicts nothing, and "generated" names nothing else."""
    lm = ODESteerLM(model_of("bridge", "llama"), Stub(32), T=T, positions="generated")
    plain = ODESteerLM(model_of("bridge", "llama")).loglikelihood(requests(PAIRS))
    found = lm.loglikelihood(requests(PAIRS))
    ((level, message),) = log
    assert level == "ERROR" and message.startswith("3 of 7 loglikelihood requests") and "NO token steered" in message
    single = [n for n, (_, answer) in enumerate(PAIRS) if len(answer.split()) == 1]
    assert [n for n in range(7) if abs(found[n][0] - plain[n][0]) < CLOSE] == single
    said = lm.get_model_info()["odesteer"]
    assert said["requests"] == 7 and said["requests_without_steering"] == 3
    lm = ODESteerLM(model_of("bridge", "llama"), Stub(32), T=T, positions="50:")
    lm.generate_until(requests([("the film", {"until": [], "max_gen_toks": 4})]))
    assert lm.get_model_info()["odesteer"]["requests_without_steering"] == 1 and log[-1][0] == "ERROR"


def test_a_budget_is_spent_on_the_contexts(tmp_path, log):
    model = model_of("bridge", "llama")
    lm = ODESteerLM(model, fitted(), kl=0.05, batch_size=4)
    lm.loglikelihood(requests(PAIRS))
    said = lm.get_model_info()["odesteer"]
    assert said["kl"] == 0.05 and said["kl_spent"] == pytest.approx(0.05, rel=0.06)
    assert said["strength"][0]["T"] > 0 and said["requests_without_steering"] == 0
    folder, prompts = tmp_path / "method", tmp_path / "prompts.txt"
    ot.save(lm.steered.method, folder)
    carried = ODESteerLM(model, str(folder), kl=0.05)
    assert not carried.steered.needs_contexts and carried.get_model_info()["odesteer"]["strength"] == said["strength"]
    assert ODESteerLM(model, str(folder)).loglikelihood(requests(PAIRS)) == carried.loglikelihood(requests(PAIRS))
    assert ODESteerLM(model, str(folder), kl=0.1).steered.needs_contexts
    prompts.write_text("the film is\n\nwe saw it and\n")
    found = ODESteerLM(model, fitted(), kl=0.05, prompts=str(prompts))
    same = ot.calibrate(model, fitted(), ["the film is", "we saw it and"], 0.05, max_new_tokens=24)
    assert found.get_model_info()["odesteer"]["strength"][0]["T"] == pytest.approx(same.strength.value)


@pytest.mark.parametrize(
    "given, told",
    [
        ({"method": Stub(32)}, "carries no strength"), ({"kl": 0.1}, "without a method"),
        ({"method": Stub(32), "T": 1.0, "kl": 0.1}, "one of them"), ({"metod": 1}, "has no metod"),
        ({"method": Stub(32), "T": 1.0, "positions": "answer"}, "positions"), ({"remote": True}, "nnsight"),
        ({"method": Stub(32), "T": 1.0, "positions": "-3:"}, "positions"),
        ({"method": Stub(32), "T": 1.0, "positions": "5:2"}, "chooses no token"),
        ({"method": Stub(32), "kl": -1.0}, "kl is a budget"), ({"prompts": 1, "blocks": "x"}, "blocks"),
    ],
)  # fmt: skip
@without_shape_checks()
def test_wrong_arguments_say_what_to_type(given, told):
    with pytest.raises(ValueError, match=told):
        ODESteerLM(model_of("bridge", "llama"), **given)


def test_chats_and_settings(way):
    model = model_of(*way)
    lm = ODESteerLM(model)
    with pytest.raises(ValueError, match="no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "a film"}])
    lm.tokenizer.chat_template = TEMPLATE
    try:
        chat = [{"role": "user", "content": "a film"}]
        assert lm.apply_chat_template(chat) == "<s> it a film the"
        assert lm.tok_encode("<s> it a film the")[:2] == [1, 18]  # no second BOS
        assert lm.chat_template(True) == TEMPLATE and "/" not in lm.tokenizer_name
        answers = [*chat, {"role": "assistant", "content": "truly"}]
        assert lm.apply_chat_template(answers, add_generation_prompt=False).endswith("we truly")
    finally:
        lm.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no repetition_penalty"):
        lm.generate_until(requests([("a", {"until": [], "max_gen_toks": 4, "repetition_penalty": 1.2})]))
    with pytest.raises(ValueError, match="leaves no room"):
        lm.generate_until(requests([("a", {"until": [], "max_gen_toks": 64})]))
    bos = ODESteerLM(model, add_bos_token=True)
    assert bos.tok_encode("a film") == [1, *lm.tok_encode("a film")]


TASK = """task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{validation: "{data}"}}}}
output_type: {kind}
validation_split: validation
doc_to_text: "{{{{question}}}}"
doc_to_target: {target}
{more}
"""
CHOICE = ("multiple_choice", "0", 'doc_to_choice: "{{choices}}"')
WRITE = ("generate_until", '"{{choices[0]}}"', 'generation_kwargs: {until: ["slow"], max_gen_toks: 6}\n'
         "metric_list: [{metric: exact_match}]")  # fmt: skip
DOCS = [
    {"question": "the film is", "choices": ["good", "bad and dull"]},
    {"question": "we saw it and", "choices": ["it was fine", "truly"]},
    {"question": "a plot", "choices": ["never", "was slow but great"]},
]


def tasks(folder, kind=CHOICE):
    data = lines(folder / "data.jsonl", DOCS)
    (folder / "mine.yaml").write_text(TASK.format(data=data, kind=kind[0], target=kind[1], more=kind[2]))
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.mark.parametrize("kind", [CHOICE, WRITE], ids=["choice", "write"])
def test_a_task_from_a_file(tmp_path, kind):
    manager, asked = tasks(tmp_path, kind), {"tasks": ["mine"], "bootstrap_iters": 0}
    arguments = {"pretrained": model_of("bridge", "llama"), "method": fitted(), "relative_T": 0.3}
    found = lm_eval.simple_evaluate("odesteer", arguments, task_manager=manager, batch_size=2, **asked)
    again = lm_eval.simple_evaluate(ODESteerLM(arguments["pretrained"]), task_manager=manager, **asked)
    theirs = lm_eval.simple_evaluate(own("llama"), task_manager=manager, **asked)
    assert again["results"] == theirs["results"]
    said = json.loads(json.dumps(found["config"]["odesteer"]))
    assert said["requests"] == (6 if kind is CHOICE else 3) and said["tokens_steered"] >= said["requests"]
    assert said["method"] == ["CAA"] and said["strength"] == [{"T": None, "relative_T": 0.3}]
    plain = again["config"]["odesteer"]
    assert plain == {"model": plain["model"], "device": "cpu", "method": None}
    assert [sample["resps"] for sample in found["samples"]["mine"]] != [s["resps"] for s in again["samples"]["mine"]]


def test_the_command_is_lm_evals_with_the_model_registered(tmp_path, monkeypatch, capsys):
    assert get_model("odesteer") is ODESteerLM
    tasks(tmp_path)
    made = TaskManager.__init__
    monkeypatch.setattr(  # lm-eval reads its own 14,000 files for half a minute
        TaskManager, "__init__", lambda self, *what, **how: made(self, *what, **how | {"include_defaults": False})
    )
    method, out = tmp_path / "method", tmp_path / "out"
    demo = ot.load_demo()
    acts = ot.collect(demo.model, demo.desired[:40], demo.undesired[:40], layer=2, position="mean")
    ot.save(ot.CAA.fit(acts), method)
    main([
        "--model", "odesteer", "--model_args", f"pretrained=embedded,method={method},kl=0.5", "--tasks", "mine",
        "--include_path", str(tmp_path), "--batch_size", "4", "--output_path", str(out),  # no device: cuda:0
    ])  # fmt: skip
    assert "|mine" in capsys.readouterr().out
    (results,) = out.rglob("results_*.json")
    said = json.loads(results.read_text())["config"]["odesteer"]
    assert said["model"] == "embedded" and said["kl"] == 0.5 and said["kl_spent"] == pytest.approx(0.5, rel=0.06)
    assert said["requests_without_steering"] == 0 and said["layers"] == [2]


def test_what_answers_depend_on_has_a_fingerprint_of_its_own():
    def of(model, **settings):
        return fingerprint(SteeredModel(model, fitted(), ot.Strength(1.0)), **settings)

    model, other = model_of("huggingface", "llama"), copy.deepcopy(model_of("huggingface", "llama"))
    assert of(model) == of(other) != of(other, chat=True)
    half = copy.deepcopy(model).double()
    next(other.parameters()).data *= 1.01
    assert len({of(model), of(other), of(half), of(model, max_length=40)}) == 4


def test_kept_answers_of_another_method_are_refused(tmp_path):
    """lm-eval's own key is the request alone."""
    manager, model = tasks(tmp_path), model_of("bridge", "llama")
    how = {"tasks": ["mine"], "bootstrap_iters": 0, "task_manager": manager, "use_cache": str(tmp_path / "kept")}
    first = {"pretrained": model, "method": fitted(), "relative_T": 0.3}
    found = lm_eval.simple_evaluate("odesteer", first, **how)
    assert lm_eval.simple_evaluate("odesteer", first, **how)["results"] == found["results"]
    for other in (
        {"method": None, "relative_T": None}, {"relative_T": 0.2}, {"positions": "all"}, {"add_bos_token": True},
        {"max_length": 40},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="another model, method, strength or setting"):
            lm_eval.simple_evaluate("odesteer", first | other, **how)
    with pytest.raises(ValueError, match="prompts=FILE"):
        lm_eval.simple_evaluate("odesteer", {"pretrained": model, "method": fitted(), "kl": 0.1}, **how)
