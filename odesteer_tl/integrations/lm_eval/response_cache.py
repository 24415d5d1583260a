"""lm-eval's `use_cache` keeps answers by request alone: a file of another model or method would be its answers."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from odesteer_tl.integrations.steered_model import SteeredModel
from odesteer_tl.portable.method_list import pairs_of
from odesteer_tl.save_load import save

KEY = "odesteer"


def check_cache(cache_hook: Any, steered: SteeredModel) -> None:
    """Raise ValueError for a file of answers that another model, method or strength wrote, and for one where a strength
    is still to be found on the requests; mark a new file. Raises it too for a method that cannot be saved."""
    answers = getattr(cache_hook, "dbdict", None)
    if answers is None:
        return
    if steered.needs_contexts:
        raise ValueError("use_cache with kl= needs prompts=FILE: the strength must not depend on what is cached.")
    mark = _mark(steered)
    if len(answers) and answers.get(KEY) != mark:
        raise ValueError(
            "This file of use_cache holds the answers of another model, method or strength, and lm-eval would take "
            "them for this one's: give another file."
        )
    answers[KEY] = mark


def _mark(steered: SteeredModel) -> str:
    """SHA-256 of what the answers depend on: what is described, and the method as it is saved."""
    digest = hashlib.sha256(json.dumps(steered.described, sort_keys=True).encode())
    methods = [] if steered.method is None else pairs_of(steered.method, steered.strength, None, steered.layer)
    with tempfile.TemporaryDirectory() as place:
        for number, (method, _) in enumerate(methods):
            save(method, Path(place, str(number)))  # its config.json holds the digest of the tensors
            digest.update(Path(place, str(number), "config.json").read_bytes())
    return digest.hexdigest()
