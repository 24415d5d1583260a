# pyright: reportMissingImports=false
"""Log-probabilities in Inspect's form."""

from collections.abc import Sequence
from typing import Any

from inspect_ai.model import Logprob, Logprobs, TopLogprob

from odesteer_tl.backends.tokenize import token_texts
from odesteer_tl.integrations.inspect.second_pass import Read


def logprobs_of(tokenizer: Any, tokens: Sequence[int], read: Read, top: int) -> Logprobs:
    """Of each token of a text, as steered; with the `top` likeliest ones at its place."""
    texts, content = token_texts(tokenizer, tokens), []
    for number, (text, value) in enumerate(zip(texts, read.logprobs, strict=True)):
        likeliest = None
        if top and read.likeliest is not None:
            likeliest = [
                TopLogprob(token=one, logprob=p, bytes=list(one.encode()))
                for one, p in ((_alone(tokenizer, id), p) for id, p in read.likeliest[number])
            ]
        content.append(Logprob(token=text, logprob=value, bytes=list(text.encode()), top_logprobs=likeliest))
    return Logprobs(content=content)


def _alone(tokenizer: Any, id: int) -> str:
    return token_texts(tokenizer, [id])[0]
