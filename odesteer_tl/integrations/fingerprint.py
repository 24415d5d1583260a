"""What answers depend on, as one number: harnesses keep answers by request, and know no method."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from odesteer_tl.evaluation.sweeps.plan import model_record
from odesteer_tl.integrations.steered_model import SteeredModel
from odesteer_tl.portable.method_list import pairs_of
from odesteer_tl.save_load import save


def fingerprint(steered: SteeredModel, **settings: Any) -> str:
    """SHA-256 of the model (its name, and on this machine also weights, dtype, device and processing), the strengths,
    the positions, the harness's own `settings`, and each method as it is saved. Raises ValueError for a method that
    cannot be saved."""
    model = {} if steered.remote else model_record(steered.model)
    template = getattr(steered.tokenizer, "chat_template", None)
    known = {**steered.described, **model, **settings, "template": template}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
    methods = [] if steered.method is None else pairs_of(steered.method, steered.strength, None, steered.layer)
    with tempfile.TemporaryDirectory() as place:
        for number, (method, _) in enumerate(methods):
            save(method, Path(place, str(number)))
            kept = json.loads(Path(place, str(number), "config.json").read_text(encoding="utf-8"))
            digest.update(f"{kept.get('sha256')} {kept['tree_sha256']}".encode())
    return digest.hexdigest()
