"""`odesteer-tl`: demo, comparison; contrastive, check, fit, calibrate, generate, sweep; parity; lm-eval."""

from odesteer_tl.cli import bench_command as _bench_command  # noqa: F401
from odesteer_tl.cli import check_command as _check_command  # noqa: F401
from odesteer_tl.cli import commands as _commands  # noqa: F401 — its commands join the app
from odesteer_tl.cli import contrastive_command as _contrastive_command  # noqa: F401
from odesteer_tl.cli import lm_eval_command as _lm_eval_command  # noqa: F401
from odesteer_tl.cli import method_commands as _method_commands  # noqa: F401
from odesteer_tl.cli import sweep_command as _sweep_command  # noqa: F401
from odesteer_tl.cli.app import app, main

__all__ = ["app", "main"]
