"""lm-eval's `use_cache` keeps answers by request alone: a file of another model or method would be its answers."""

from typing import Any

from odesteer_tl.integrations.fingerprint import fingerprint
from odesteer_tl.integrations.steered_model import SteeredModel

KEY = "odesteer"


def check_cache(cache_hook: Any, steered: SteeredModel, **settings: Any) -> None:
    """Raise ValueError for a file of answers that another model, method, strength or setting wrote, for one where a
    strength is still to be found on the requests, and for a method that cannot be saved; mark a new file."""
    answers = getattr(cache_hook, "dbdict", None)
    if answers is None:
        return
    if steered.needs_contexts:
        raise ValueError("use_cache with kl= needs prompts=FILE: the strength must not depend on what is cached.")
    mark = fingerprint(steered, **settings)
    if len(answers) and answers.get(KEY) != mark:
        raise ValueError(
            "This file of use_cache holds the answers of another model, method, strength or setting (dtype, library, "
            "max_length, add_bos_token, …), and lm-eval would take them for this one's: give another file."
        )
    answers[KEY] = mark
