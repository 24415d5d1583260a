# pyright: reportMissingImports=false
"""The provider `odesteer/…` of Inspect AI: any library's model, steered at exact positions, in batches."""

import inspect
import logging
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from uuid import uuid4

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.solver._task_state import sample_state
from inspect_ai.tool import ToolChoice, ToolInfo

from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.chat_templates import has_template
from odesteer_tl.backends.model_info import context_of
from odesteer_tl.backends.tokenize import tokenise
from odesteer_tl.integrations.continuations import Continuation, continuations
from odesteer_tl.integrations.fingerprint import fingerprint
from odesteer_tl.integrations.fired import Fired
from odesteer_tl.integrations.given import check_known
from odesteer_tl.integrations.inspect.batcher import Batcher
from odesteer_tl.integrations.inspect.logprobs import logprobs_of
from odesteer_tl.integrations.inspect.second_pass import Read, read_again
from odesteer_tl.integrations.steered_model import SteeredModel

LOG = logging.getLogger(__name__)
MAX_TOKENS = 256
"""Tokens written where neither task nor command line says how many."""

READ_HERE = ("max_tokens", "temperature", "top_p", "top_k", "stop_seqs", "seed", "logprobs", "top_logprobs")
NO_MATTER = (
    "max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections", "adaptive_connections",
    "system_message", "parallel_tool_calls", "internal_tools", "max_tool_output", "cache_prompt", "cache", "batch",
    "fail_on_refusal", "reasoning_history",
)  # fmt: skip
"""Settings of Inspect's own, of connections and of tools. Others than these and those that are read are refused."""


@dataclass(frozen=True)
class _Asked:
    """The tokens of one chat, and how it is to be continued."""

    prompt: list[int]
    until: tuple[str, ...]
    max_tokens: int
    sampling: tuple[tuple[str, Any], ...]
    seed: int | None
    logprobs: bool
    top: int

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for requests that can share a batch."""
        return self.until, self.max_tokens, self.sampling, self.seed, self.logprobs, self.top


@modelapi(name="odesteer")
class ODESteerAPI(ModelAPI):
    """Answers chats, steered by a method, with log-probabilities, and says in each sample's metadata what was steered.

    `model_name`, the part after `odesteer/`: a Hugging Face name, a folder, a GGUF file or "embedded"; `-M
    model_path=FOLDER` takes its place, and in Python `loaded=` a model of any library (then pass `memoize=False` to
    `get_model`). `method`, `T`, `relative_T`, `kl`, `prompts`, `positions`, `layer`, `blocks`, `remote`, `library`,
    `device`, `dtype`: as for `integrations.lm_eval.ODESteerLM`; requests come one by one, so `kl` needs the file
    `prompts`, unless the method carries the strength. `batch_size`: the most chats in a pass, also the default of
    `--max-connections`. `chat_template`: True or a Jinja template; None: the tokenizer's, where it has one; False, or
    without one: the messages' contents, with blank lines between them. `record`: whether h before and after and the
    displacement are measured too, by one more pass.

    Decoding is greedy unless temperature (other than 0), top_p or top_k is set. Sampled texts depend on which chats
    share a batch: give a `seed` and `batch_size=1` for texts that come again.

    Each sample's metadata holds "odesteer": method, strength, positions, layers, and tokens_steered over its calls. A
    call of which no token was steered is logged as an error and counted there. Raises ValueError for wrong arguments,
    for tools, and for settings that it does not have.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 — as Inspect's own
        *,
        model_path: str | None = None,
        loaded: Any = None,
        batch_size: int = 16,
        chat_template: bool | str | None = None,
        record: bool = False,
        **how: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        known = {*inspect.signature(SteeredModel.of).parameters} - {"pretrained"}
        check_known(set(how) - known, {*known, "model_path", "loaded", "record"}, "odesteer/")
        pretrained = loaded if loaded is not None else model_path or model_name
        self.steered = SteeredModel.of(pretrained, **how, batch_size=batch_size, chat_template=chat_template or False)
        if self.steered.needs_contexts:
            raise ValueError("kl= finds the strength on prompts: give prompts=FILE, one per line, with it.")
        own = has_template(self.steered.tokenizer)
        self.chat_template, self.record = own if chat_template is None else chat_template, record
        self.base_url = base_url or _kept_under(self.steered, chat=self.chat_template, record=record)
        self.fired, self._batches = Fired(), 0
        self._batcher = Batcher(
            self._answered, self.steered.batch_size, backend_of(self.steered.model).root(self.steered.model)
        )

    def max_connections(self) -> int:
        """As many as share a batch."""
        return self.steered.batch_size

    def connection_key(self) -> str:
        """Each model by itself."""
        return f"{self.model_name}-{id(self)}"

    def max_tokens(self) -> int | None:
        """Where nothing else is said."""
        return MAX_TOKENS

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The answer to a chat. Raises ValueError for what is not known here."""
        if tools:
            raise ValueError("odesteer/ calls no tools: give a task without them.")
        asked = self._asked(input, config)
        written, read, seconds = await self._batcher.ask(asked, asked.key)
        said = self._noted(asked, written, read)
        full = len(asked.prompt) + len(written.tokens) >= (context_of(self.steered.model) or 10**9)
        reason = "stop" if written.ended == "stop" else "model_length" if full else "max_tokens"
        message = ChatMessageAssistant(content=written.text, model=self.model_name, source="generate")
        logprobs = logprobs_of(self.steered.tokenizer, written.tokens, read, asked.top) if asked.logprobs else None
        new = len(written.tokens)
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=message, stop_reason=reason, logprobs=logprobs)],
            usage=ModelUsage(input_tokens=len(asked.prompt), output_tokens=new, total_tokens=len(asked.prompt) + new),
            time=seconds,
            metadata={"odesteer": said},
        )

    def _asked(self, messages: list[ChatMessage], config: GenerateConfig) -> _Asked:
        known = (*READ_HERE, *NO_MATTER)
        given = [name for name, own in config if own and name not in known and (name, own) != ("num_choices", 1)]
        if given:
            raise ValueError(f"odesteer/ has no {', '.join(given)}: leave it out.")
        parts = [one for message in messages if not isinstance(message.content, str) for one in message.content]
        other = sorted({part.type for part in parts} - {"text", "reasoning"})
        if other:
            raise ValueError(f"odesteer/ reads text alone, and this chat holds {', '.join(other)}.")
        chat = [{"role": message.role, "content": message.text} for message in messages]
        texts: Any = [chat] if self.chat_template is not False else ["\n\n".join(one["content"] for one in chat)]
        ids = tokenise(self.steered.model, texts, chat_template=self.chat_template)
        prompt = ids.tokens[0].tolist()
        most, context = config.max_tokens or MAX_TOKENS, context_of(self.steered.model)
        most = most if context is None else min(most, context - len(prompt))
        if most < 1:
            raise ValueError(f"This chat has {len(prompt)} tokens, and the model holds {context}: shorten it.")
        sampling: dict[str, Any] = {"top_p": config.top_p, "top_k": config.top_k, "temperature": config.temperature}
        sampling = {name: value for name, value in sampling.items() if value is not None}
        sampling["do_sample"] = bool(sampling) and config.temperature != 0
        until = tuple(config.stop_seqs or ())
        top = config.top_logprobs or 0
        return _Asked(
            prompt, until, most, tuple(sorted(sampling.items())), config.seed, bool(config.logprobs or top), top
        )

    def _answered(self, asked: list[_Asked]) -> list[tuple[Continuation, Read, float]]:
        """One batch, in a worker thread."""
        start, first, prompts = perf_counter(), asked[0], [one.prompt for one in asked]
        self._batches += 1
        seed = self._batches if first.seed is None else first.seed
        made = continuations(self.steered, prompts, first.until, first.max_tokens, seed, **dict(first.sampling))
        read = [Read() for _ in made]
        if first.logprobs or self.record:
            read = read_again(self.steered, prompts, [one.tokens for one in made], first.top, self.record)
        seconds = perf_counter() - start
        return [(*pair, seconds) for pair in zip(made, read, strict=True)]

    def _noted(self, asked: _Asked, written: Continuation, read: Read) -> dict[str, Any]:
        """What one call steered; it is counted, and added to the metadata of the running sample."""
        said = dict(self.steered.described)
        if self.steered.method is not None:
            shown = self.steered.tokenizer.decode(asked.prompt)
            self.fired.add("generate", [written.steered], [shown], self.steered.positions, LOG)
            said |= {"calls": 1, "calls_without_steering": int(written.steered == 0), "tokens_steered": written.steered}
            said |= {"edits": read.edits} if read.edits else {}
        state = sample_state()
        if state is not None:
            before = (state.metadata or {}).get("odesteer", {})
            counts = ("calls", "calls_without_steering", "tokens_steered")
            state.metadata["odesteer"] = said | {
                name: said[name] + before.get(name, 0) for name in counts if name in said
            }
        return said


def _kept_under(steered: SteeredModel, **settings: Any) -> str:
    """Inspect's cache of answers tells models apart by name and address, and knows no method: a name for this one."""
    try:
        return f"odesteer:{fingerprint(steered, **settings)}"
    except ValueError:  # a method of the user's own, which cannot be compared
        return f"odesteer:{uuid4()}"
