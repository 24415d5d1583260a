"""--device and --dtype of every command that loads a model: where it runs, and in which type of number."""

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from inspect import Parameter
from typing import Annotated, Any

from typer import Option

from odesteer_tl.cli import values

DEFAULTS = ("cpu", "float32")
_GIVEN: ContextVar[tuple[str, str]] = ContextVar("device and dtype of the running command", default=DEFAULTS)
_OPTIONS = {
    "device": Annotated[
        str, Option(parser=values.device, metavar="DEVICE", help="Where the model runs, as in cuda or cuda:1.")
    ],
    "dtype": Annotated[
        str, Option(parser=values.dtype, metavar="DTYPE", help=f"Of the weights: {', '.join(values.DTYPES)}.")
    ],
}


def device_and_dtype() -> tuple[str, str]:
    """The values that the running command was given, or the defaults."""
    return _GIVEN.get()


def loads_model(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command both options, before its last one. `models.chosen_model` reads them, and not the command."""

    @functools.wraps(command)
    def run(*args: Any, device: str, dtype: str, **kwargs: Any) -> Any:
        before = _GIVEN.set((device, dtype))
        try:
            return command(*args, **kwargs)
        finally:
            _GIVEN.reset(before)

    signature = inspect.signature(command)
    own = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=_OPTIONS[name])
        for name, default in zip(_OPTIONS, DEFAULTS, strict=True)
    ]
    others = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in signature.parameters.values()]
    run.__dict__["__signature__"] = signature.replace(parameters=[*others[:-1], *own, *others[-1:]])
    run.__annotations__ = {**command.__annotations__, **_OPTIONS}
    return run
