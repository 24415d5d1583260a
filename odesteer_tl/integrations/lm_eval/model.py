# pyright: reportMissingImports=false
"""The model `odesteer` of lm-evaluation-harness: any library's model, steered at exact positions."""

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from odesteer_tl._progress import bar
from odesteer_tl.backends.model_info import context_of, device_of, dtype_of
from odesteer_tl.integrations.continuations import continuations
from odesteer_tl.integrations.fired import Fired
from odesteer_tl.integrations.given import check_known
from odesteer_tl.integrations.lm_eval.response_cache import check_cache
from odesteer_tl.integrations.steered_model import SteeredModel

LOG = logging.getLogger("lm_eval.odesteer")
"""Below lm-eval's logger, so that its handlers show what is said."""

DEFAULT_LENGTH = 2048
"""lm-eval's length for a model that does not say its own."""

Pair = tuple[Any, list[int], list[int]]
"""A request as it is logged and cached, and the tokens of its context and of its continuation."""


@register_model("odesteer")
class ODESteerLM(TemplateLM):
    """Answers loglikelihood, loglikelihood_rolling and generate_until.

        lm_eval.simple_evaluate(model="odesteer", model_args={"pretrained": model, "method": method, "T": 5.0}, …)

    `pretrained`: a model of any library that is loaded, or a Hugging Face name, a folder, a GGUF file or "embedded",
    loaded by `library` ("transformer_lens", "nnsight" or "huggingface") with `dtype` (float32; lm-eval's `hf` takes the
    checkpoint's) on `device`. `method`: a fitted method, or the folder of a saved one; None: unsteered. `T`,
    `relative_T` or `kl` (with `quantile`) say how strongly; none of them is needed where the method carries a strength.
    `kl` finds the strength by `ot.calibrate`, on the lines of the file `prompts` or on up to 24 contexts of the first
    requests; a method that carries the strength for the same budget keeps it. `layer`, `blocks` and `remote` (True, or
    the address of a server, for nnsight) as for `ot.steering` and `ot.generate`.

    What is steered, by `positions`: "decoding" (the default) steers the last token of a request's context and all of
    its continuation, which is what a generation of the continuation would steer; "generated" the continuation alone;
    "prompt" the context alone; "all" both; "0:5" a slice of the real tokens of a row. In loglikelihood_rolling the
    context of a window is its first token alone, and of a shorter last window what lm-eval repeats there. The last
    token of a continuation predicts nothing: the model does not see it. Pads are never steered, and batches change
    nothing.

    Texts become tokens as in lm-eval's `hf` (`add_bos_token` None: as the checkpoint's tokenizer does), so unsteered
    numbers are the same. Requests of which no token was steered are logged as errors and counted in the results, under
    "config", "odesteer".

    Raises ValueError for wrong arguments, and as `ot.steering` does.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: Any,
        method: Any = None,
        *,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        seed: int = 0,
        **how: Any,
    ) -> None:
        super().__init__()
        known = inspect.signature(SteeredModel.of).parameters
        check_known(set(how) - set(known), {*known, "max_length", "max_gen_toks", "add_bos_token", "prefix_token_id"},
                    "model_args of odesteer")  # fmt: skip
        if isinstance(batch_size, str) and not batch_size.isdigit():
            LOG.warning("batch_size=%s is not sought here: 16 is taken.", batch_size)
            batch_size = 16
        if str(how.get("device")).startswith("cuda") and not torch.cuda.is_available():
            said = "device=%s is not here (lm-eval asks for cuda where none is given): the CPU is taken."
            LOG.warning(said, how["device"])
            how["device"] = "cpu"
        self.steered = SteeredModel.of(pretrained, method, batch_size=int(batch_size or 1), **how)
        self.tokenizer = self.steered.tokenizer
        self._device = device_of(self.steered.model)
        self._length, self.max_gen_toks, self.seed = max_length, int(max_gen_toks), seed
        self._add_bos, self._prefix = add_bos_token, prefix_token_id
        self.fired = Fired()

    @property
    def max_length(self) -> int:
        """The longest text, in tokens."""
        return self._length or context_of(self.steered.model) or DEFAULT_LENGTH

    @property
    def batch_size(self) -> int:
        """Texts in a pass."""
        return self.steered.batch_size

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a continuation without a context."""
        bos = self.tokenizer.bos_token_id
        return self._prefix if self._prefix is not None else self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def set_cache_hook(self, cache_hook: Any) -> None:
        """lm-eval's cache of answers knows neither model nor method: here it is refused unless it is this one's."""
        check_cache(
            cache_hook, self.steered, max_length=self._length, max_gen_toks=self.max_gen_toks, seed=self.seed,
            add_bos_token=self._add_bos, prefix_token_id=self._prefix,
        )  # fmt: skip
        super().set_cache_hook(cache_hook)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text, as lm-eval's `hf` makes them; a text that begins with the BOS gets no second one."""
        bos = self.tokenizer.bos_token_id
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            add_special_tokens = False
        if add_special_tokens is None and self._add_bos is not None:
            ids = self.tokenizer.encode(string, add_special_tokens=False)
            return [bos, *ids] if self._add_bos and bos is not None else ids
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **options)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as text, by the tokenizer's template. Raises ValueError where there is none."""
        if not self.tokenizer.chat_template:
            raise ValueError("This tokenizer has no chat template: leave out --apply_chat_template.")
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip

    def _loglikelihood_tokens(self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: Any) -> list[Any]:
        answers, steered = self._scored([(context, answer) for _, context, answer in requests])
        self._note("loglikelihood", steered, [request[0] for request in requests])
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, each token after as many as fit; see `positions` of the class."""
        windows: list[tuple[list[int], list[int]]] = []
        counts = []
        for (string,) in [request.args for request in requests]:
            made = get_rolling_token_windows(self.tok_encode(string), self.prefix_token_id, self.max_length, 1)
            own = [make_disjoint_window(window) for window in made]
            windows += own
            counts.append(len(own))
        answers, steered = self._scored(windows)
        sums, moved, start = [], [], 0
        for request, count in zip(requests, counts, strict=True):
            sums.append(sum(value for value, _ in answers[start : start + count]))
            moved.append(sum(steered[start : start + count]))
            start += count
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, sums[-1])
        self._note("loglikelihood_rolling", moved, [request.args[0] for request in requests])
        return sums

    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[list[tuple[float, bool]], list[int]]:
        """Sum of log p and whether it is greedy, and the number of steered tokens, of each continuation. Contexts lose
        their beginning where the text is too long."""
        if not pairs:
            return [], []
        long = max(len(answer) for _, answer in pairs)
        if long > self.max_length or not all(answer for _, answer in pairs):
            raise ValueError(f"A continuation has {long} tokens; it needs one, and at most {self.max_length}.")
        contexts = [context[max(0, len(context) + len(answer) - self.max_length - 1) :] for context, answer in pairs]
        self._calibrate(contexts)
        found = self.steered.likelihoods(contexts, [answer for _, answer in pairs])
        sums = [float(values.sum()) for values in found.tokens]
        return list(zip(sums, [bool(best.all()) for best in found.greedy], strict=True)), found.steered.tolist()

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string. Raises ValueError for settings that are not known here."""
        prompts, settings = [], []
        for context, given in [request.args for request in requests]:
            own: dict[str, Any] = dict(normalize_gen_kwargs(given, self.max_gen_toks))
            until, most = own.pop("until", None) or [], int(own.pop("max_gen_toks"))
            until = [until] if isinstance(until, str) else until
            if most >= self.max_length:
                raise ValueError(f"max_gen_toks={most} leaves no room for a prompt: the model holds {self.max_length}.")
            check_known(set(own) - {"do_sample", "temperature", "top_p", "top_k"},
                        ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"),
                        "generation_kwargs of odesteer")  # fmt: skip
            sampling = tuple(sorted(own.items())) if own.get("do_sample") else (("do_sample", False),)
            tokens = self.tok_encode(context) or [self.prefix_token_id]
            prompts.append(tokens[-(self.max_length - most) :])
            settings.append((tuple(until), most, sampling))
        self._calibrate(prompts)
        answers: dict[int, Any] = {}
        order = sorted(range(len(prompts)), key=lambda row: (settings.index(settings[row]), -len(prompts[row])))
        for rows in bar(_alike(order, settings, self.batch_size), label="Continuations"):
            until, most, sampling = settings[rows[0]]
            seed = self.seed + rows[0]
            made = continuations(self.steered, [prompts[row] for row in rows], until, most, seed, **dict(sampling))
            answers |= dict(zip(rows, made, strict=True))
            for row in rows:
                self.cache_hook.add_partial("generate_until", requests[row].args, answers[row].text)
        self._note("generate_until", [answers[row].steered for row in range(len(prompts))],
                   [request.args[0] for request in requests])  # fmt: skip
        return [answers[row].text for row in range(len(prompts))]

    def _calibrate(self, contexts: Sequence[list[int]]) -> None:
        if self.steered.needs_contexts:
            self.steered.calibrate(contexts)
            LOG.info("kl=%s: %s", self.steered.budget, str(self.steered.found).partition("\n")[0])

    def _note(self, kind: str, steered: Sequence[int], shown: Sequence[Any]) -> None:
        if self.steered.method is not None:
            self.fired.add(kind, steered, shown, self.steered.positions, LOG)

    def get_model_info(self) -> dict[str, Any]:
        """For the results: what steered, at which strength, and how many tokens of how many requests."""
        said = self.steered.described | (self.fired.described if self.steered.method is not None else {})
        return {"model_dtype": str(dtype_of(self.steered.model)), "odesteer": said}


def _alike(order: list[int], settings: list[Any], size: int) -> list[list[int]]:
    """Rows with the same settings, at most `size` together."""
    batches: list[list[int]] = []
    for row in order:
        if not batches or len(batches[-1]) == size or settings[batches[-1][0]] != settings[row]:
            batches.append([])
        batches[-1].append(row)
    return batches
