"""Inspect AI: chats answered as a torch hook on the plain model says, in batches, with what was steered in the log."""

import asyncio
import logging

import pytest
from harnesses import LAYER, TEMPLATE, Stub, T, expected, fitted, greedy, lines, model_of
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample, json_dataset
from inspect_ai.log import read_eval_log
from inspect_ai.model import (
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, system_message
from models import EVERY

import odesteer_tl as ot
from odesteer_tl.integrations.inspect import ODESteerAPI, provider
from odesteer_tl.integrations.inspect.batcher import Batcher

WAYS = [(kind, family) for kind in EVERY for family in ("llama", "gpt2")]
QUESTIONS = ["the film is", "a", "we saw it and it was good", "truly"]


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def way(request):
    return request.param


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def task(**config):
    samples = [Sample(input=question, target="film", id=n) for n, question in enumerate(QUESTIONS)]
    return Task(dataset=samples, solver=generate(), scorer=includes(), config=GenerateConfig(**config))


def run(model, one, **how):
    (log,) = eval(one, model=model, display="none", **how)
    assert log.status == "success", log.error
    return log


def provided(model, method=None, **how):
    return get_model("odesteer/mine", loaded=model, method=method, memoize=False, **how)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_are_those_of_a_hook_and_the_log_says_what_was_steered(way, batch_size):
    model = provided(model_of(*way), Stub(32), T=T, batch_size=batch_size, chat_template=TEMPLATE)
    log = run(model, task(max_tokens=20, logprobs=True, top_logprobs=2))
    tokenizer = model.api.steered.tokenizer
    for question, sample in zip(QUESTIONS, log.samples, strict=True):
        prompt = tokenizer.encode(f"<s> it {question} the", add_special_tokens=False)
        row = greedy(way[1], prompt, 20, Stub(32))
        ended = row[-1] == 2
        text = row[:-1] if ended else row
        assert sample.output.completion == tokenizer.decode(text, skip_special_tokens=True)
        assert sample.output.stop_reason == ("stop" if ended else "max_tokens")
        assert sample.output.usage.input_tokens == len(prompt) and sample.output.usage.output_tokens == len(text)
        content = sample.output.choices[0].logprobs.content if text else []
        assert sum(one.logprob for one in content) == pytest.approx(
            expected(way[1], prompt, text, "decoding", Stub(32)) if text else 0, abs=1e-3
        )
        for one in content:  # greedy: the first of the likeliest is the token
            assert [one.logprob, len(one.top_logprobs)] == [pytest.approx(one.top_logprobs[0].logprob), 2]
        for said in (sample.metadata["odesteer"], sample.output.metadata["odesteer"]):
            assert said["tokens_steered"] == len(row) and said["layers"] == [LAYER] and said["method"] == ["Stub"]
            assert said["calls"] == 1 and said["calls_without_steering"] == 0 and said["positions"] == "decoding"


def test_batches_are_made_and_hold_what_is_alike(monkeypatch):
    sizes, made = [], provider.continuations
    monkeypatch.setattr(
        provider, "continuations", lambda steered, prompts, *how, **more: sizes.append(len(prompts)) or made(
            steered, prompts, *how, **more)
    )  # fmt: skip
    model = provided(model_of("bridge", "llama"), batch_size=4)
    run(model, [task(max_tokens=4)])
    assert sizes == [4]
    assert model.api.max_connections() == 4

    async def both():
        asked = [(question, GenerateConfig(max_tokens=most)) for question in QUESTIONS for most in (3, 4)]
        return await asyncio.gather(*(model.generate(question, config=config) for question, config in asked))

    sizes.clear()
    answers = asyncio.run(both())
    assert sizes == [4, 4] and [answer.usage.output_tokens <= most for answer in answers for most in (3, 4)]


def test_an_error_of_a_batch_comes_to_each_of_its_requests():
    def fails(requests):
        raise RuntimeError(f"{len(requests)} together")

    async def ask():
        batcher = Batcher(fails, 3, model_of("bridge", "llama"))
        return await asyncio.gather(*(batcher.ask(n, "key") for n in range(5)), return_exceptions=True)

    assert [str(error) for error in asyncio.run(ask())] == ["3 together"] * 3 + ["2 together"] * 2


def test_chats_system_prompts_and_plain_texts():
    model = provided(model_of("huggingface", "llama"), chat_template=TEMPLATE)
    chat = [ChatMessageSystem(content="never"), ChatMessageUser(content="a film")]
    found = asyncio.run(model.generate(chat, config=GenerateConfig(max_tokens=2)))
    assert found.usage.input_tokens == len("<s> we never <s> it a film the".split())
    plain = provided(model_of("huggingface", "llama"))
    assert asyncio.run(plain.generate(chat, config=GenerateConfig(max_tokens=2))).usage.input_tokens == 3
    one = task(max_tokens=3)
    one.solver = [system_message("we saw"), generate()]
    log = run(provided(model_of("bridge", "llama"), fitted(), relative_T=0.3), one)
    assert [sample.metadata["odesteer"]["tokens_steered"] for sample in log.samples] == [3] * 4


def test_stop_strings_sampling_and_seeds():
    model = provided(model_of("bridge", "gpt2"), batch_size=1)

    def said(**config):
        return asyncio.run(model.generate("the film is", config=GenerateConfig(max_tokens=24, **config))).completion

    whole = said()
    word = whole[20:24]
    assert said(stop_seqs=[word]) == whole[: whole.index(word)]
    assert said(temperature=0.0) == whole == said()
    sampled = said(temperature=1.0, seed=3)
    assert sampled == said(temperature=1.0, seed=3) != whole
    assert len({said(temperature=1.5) for _ in range(4)}) > 1  # without a seed each call has another
    assert said(top_k=1, seed=5) == whole


def test_what_each_edit_did_is_recorded():
    demo = ot.load_demo()
    acts = ot.collect(demo.model, demo.desired[:60], demo.undesired[:60], layer=2, position="mean")
    method = ot.ODESteer.fit(acts)
    model = get_model("odesteer/mine", loaded=demo.model, method=method, relative_T=0.2, record=True, memoize=False)
    log = run(model, Task(dataset=[Sample(input=text) for text in demo.prompts[:3]], solver=generate(),
                          config=GenerateConfig(max_tokens=12)))  # fmt: skip
    for prompt, sample in zip(demo.prompts, log.samples, strict=False):
        (edit,) = sample.metadata["odesteer"]["edits"]
        with ot.steering(demo.model, method, relative_T=0.2, record=True) as report:
            ot.generate(demo.model, prompt, max_new_tokens=12)
        records = report.records
        assert edit["tokens"] == len(records) and edit["layer"] == 2 and edit["method"] == "ODESteer"
        for name in ("displacement", "h_before", "h_after"):
            assert edit[name] == pytest.approx(sum(getattr(one, name) for one in records) / len(records), abs=1e-3)


@pytest.mark.parametrize("most", [1, 6])
def test_equal_chats_of_a_batch_are_recorded_each_and_an_unsteered_one_is_counted(most):
    """The pass over prompt and answer shows the model equal rows once, and those that differ in the last token."""
    model = get_model("odesteer/mine", loaded=model_of("bridge", "llama"), method=fitted(), relative_T=0.3, record=True,
                      positions="generated", batch_size=4, memoize=False)  # fmt: skip
    asked = [QUESTIONS[0], QUESTIONS[2], QUESTIONS[0], QUESTIONS[0]]

    async def all_of():
        config = GenerateConfig(max_tokens=most)
        return await asyncio.gather(*(model.generate(question, config=config) for question in asked))

    said = [answer.metadata["odesteer"] for answer in asyncio.run(all_of())]
    assert said[0] == said[2] == said[3] and model.api._batches == 1
    if most == 1:  # the only token that is generated is not read
        assert all(one["calls_without_steering"] == 1 and "edits" not in one for one in said)
    else:
        for one in said:
            (edit,) = one["edits"]
            assert edit["tokens"] == one["tokens_steered"] > 0 and edit["displacement"] > 0
        assert said[0] != said[1]


def test_what_is_no_text_is_refused():
    chat = [
        ChatMessageUser(content=[ContentText(text="what is"), ContentImage(image="data:image/png;base64,iVBORw0=")])
    ]
    with pytest.raises(ValueError, match="reads text alone, and this chat holds image"):
        asyncio.run(provided(model_of("bridge", "llama")).generate(chat))


def test_no_token_steered_is_an_error_in_the_log(monkeypatch):
    errors = []
    monkeypatch.setattr(provider.LOG, "error", lambda text, *what: errors.append(text % what))
    log = run(provided(model_of("bridge", "llama"), Stub(32), T=T, positions="50:"), task(max_tokens=4))
    assert len(errors) == 4 and "NO token steered" in errors[0]
    assert {sample.metadata["odesteer"]["calls_without_steering"] for sample in log.samples} == {1}


@pytest.mark.parametrize(
    "how, config, told",
    [
        ({"kl": 0.1}, {}, "without a method"), ({"method": fitted}, {}, "no strength"),
        ({"method": fitted, "kl": 0.1}, {}, "prompts=FILE"), ({"metod": 1}, {}, "has no metod"),
        ({}, {"frequency_penalty": 1.0}, "frequency_penalty"), ({}, {"num_choices": 2}, "num_choices"),
        ({}, {"extra_body": {"min_p": 0.1}}, "has no extra_body"), ({}, {"effort": "low"}, "has no effort"),
    ],
)  # fmt: skip
def test_wrong_arguments_say_what_to_type(how, config, told):
    how = {name: value() if callable(value) else value for name, value in how.items()}
    with pytest.raises(ValueError, match=told):
        model = get_model("odesteer/mine", loaded=model_of("bridge", "llama"), memoize=False, **how)
        asyncio.run(model.generate("a", config=GenerateConfig(**config)))


def test_kept_answers_are_of_one_method():
    """Inspect's own cache knows neither model arguments nor methods."""
    model = model_of("bridge", "llama")
    config = GenerateConfig(max_tokens=9)
    given = [{}, {"method": fitted(), "T": 60.0}, {"method": fitted(), "T": -60.0}, {}]
    answers = [asyncio.run(provided(model, **how).generate("the film is", cache=True, config=config)) for how in given]
    texts = [answer.completion for answer in answers]
    assert len(set(texts[:3])) == 3 and texts[0] == texts[3]


def test_a_file_a_folder_and_a_budget(tmp_path):
    """The command line's way: names alone."""
    demo = ot.load_demo()
    ot.save(ot.CAA.fit(ot.collect(demo.model, demo.desired[:40], demo.undesired[:40], layer=2)), tmp_path / "method")
    (tmp_path / "prompts.txt").write_text("\n".join(demo.prompts[:6]))
    data = lines(tmp_path / "data.jsonl", [{"input": text, "target": "film"} for text in demo.prompts[:5]])
    arguments = {"method": str(tmp_path / "method"), "kl": 0.5, "prompts": str(tmp_path / "prompts.txt")}
    one = Task(dataset=json_dataset(str(data)), solver=generate(), scorer=includes())
    (log,) = eval(one, model="odesteer/embedded", model_args=arguments, max_tokens=8, display="none")
    assert log.status == "success", log.error
    said = read_eval_log(log.location).samples[0].metadata["odesteer"]
    assert said["kl"] == 0.5 and said["kl_spent"] == pytest.approx(0.5, rel=0.06) and said["tokens_steered"] == 8


def test_inspect_finds_the_provider_by_its_entry_point():
    from importlib.metadata import entry_points

    (found,) = [one for one in entry_points(group="inspect_ai") if one.name == "odesteer_tl"]
    assert found.load().ODESteerAPI is ODESteerAPI
    assert logging.getLogger(provider.__name__) is provider.LOG
