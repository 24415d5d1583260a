"""Results as JSON that any program reads."""

import json
import math
from typing import Any


def json_text(tree: Any) -> str:
    """`tree` as JSON. Numbers that are not finite, which JSON does not have, become null."""
    return json.dumps(_finite(tree), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
