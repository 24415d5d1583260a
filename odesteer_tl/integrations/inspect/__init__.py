"""Inspect AI: the provider `odesteer/…` (`pip install 'odesteer_tl[inspect]'`), which Inspect finds by itself.

inspect eval task.py --model odesteer/NAME -M method=FOLDER -M kl=0.5 -M prompts=FILE

from inspect_ai.model import get_model
eval(task, model=get_model("odesteer/mine", loaded=model, method=method, T=5.0, memoize=False))
"""

from odesteer_tl.integrations.inspect.provider import ODESteerAPI

__all__ = ["ODESteerAPI"]
