"""What answers depend on, as one number: harnesses keep answers by request, and know no method."""

import hashlib
import json
import tempfile
from pathlib import Path

from odesteer_tl.integrations.steered_model import SteeredModel
from odesteer_tl.portable.method_list import pairs_of
from odesteer_tl.save_load import save


def fingerprint(steered: SteeredModel) -> str:
    """SHA-256 of the model's name, the strengths, the positions, and each method as it is saved. Raises ValueError for
    a method that cannot be saved."""
    digest = hashlib.sha256(json.dumps(steered.described, sort_keys=True).encode())
    methods = [] if steered.method is None else pairs_of(steered.method, steered.strength, None, steered.layer)
    with tempfile.TemporaryDirectory() as place:
        for number, (method, _) in enumerate(methods):
            save(method, Path(place, str(number)))
            kept = json.loads(Path(place, str(number), "config.json").read_text(encoding="utf-8"))
            digest.update(f"{kept.get('sha256')} {kept['tree_sha256']}".encode())
    return digest.hexdigest()
