"""Parsers of typed values. A wrong value is refused before any work, and the error names the option."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from odesteer_tl._shapes import Position
from odesteer_tl.data.tokens import random_count, reads_several
from odesteer_tl.evaluation.contrasts.templates import FORMS
from odesteer_tl.evaluation.sweeps.guardrails import MEASURES, SPEED
from odesteer_tl.methods.registry import registered

UNPAIRED = ("one side", "both sides")
INDEX = r"-?[0-9]{1,9}"
SHARES = ("share", "distinct2", "repetition", "informativeness")
"""Measures between 0 and 1."""
MOST, MOST_LAYERS = 1e9, 10_000
"""The largest strength, which float32 can still add and square, and more blocks than any model has."""


def whole(low: int, high: int) -> Callable[[Any], int]:
    """Reads a whole number from `low` to `high`, in decimal digits."""

    def read(given: Any) -> int:
        text = str(given)
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            raise typer.BadParameter(f"{text!r} is not a whole number.")
        number = int(text) if len(text) <= 20 else math.inf  # int() raises for thousands of digits
        if not low <= number <= high:
            raise typer.BadParameter(f"{text} is not from {low} to {high}.")
        return int(number)

    return read


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Callable[[Any], float]:
    """Reads a finite number from `low` (or, with `above`, above it) to `high`."""

    def read(given: Any) -> float:
        text = str(given)
        try:
            value = float(text if re.fullmatch(r"[!-^`-~]+", text) else "")  # no 1_000, no digits of other scripts
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a number.") from None
        if not math.isfinite(value):
            raise typer.BadParameter(f"{text} is not a finite number.")
        if value < low or value > high or (above and value == low):
            start = f"above {low:g}" if above else f"at least {low:g}"
            raise typer.BadParameter(f"{text} is not {start}{'' if math.isinf(high) else f' and at most {high:g}'}.")
        return value

    return read


def temperature(given: Any) -> float:
    """Reads 0, or a temperature of at least 1e-6: logits divided by less would overflow float32."""
    value = number(0.0)(given)
    if 0 < value < 1e-6:
        raise typer.BadParameter(f"{given} is neither 0 nor at least 1e-06.")
    return value


DTYPES = ("float32", "bfloat16", "float16")


def dtype(given: Any) -> str:
    """Reads the name of a type of number that models are run in."""
    if given not in DTYPES:
        raise typer.BadParameter(f"{given!r} is not one of {', '.join(DTYPES)}.")
    return str(given)


def device(given: Any) -> str:
    """Reads the name of a torch device: letters, and a number after a colon."""
    if not re.fullmatch(r"[a-z]+(:[0-9]{1,3})?", str(given)):
        raise typer.BadParameter(f"{given!r} is not a device, as in cpu, cuda or cuda:1.")
    if str(given).startswith("meta"):
        raise typer.BadParameter("a model on the device meta has no weights to run.")
    return str(given)


def method_names() -> list[str]:
    """The methods that are fitted to activations of texts, in the order of the paper's tables."""
    return [entry.name for entry in registered() if entry.fits_activations]


def method(given: Any) -> str:
    """Reads the name of a method that is fitted to activations, also as its class is written: CAA, ODESteer."""
    if str(given).lower() not in method_names():
        raise typer.BadParameter(f"{given!r} is not one of {', '.join(method_names())}.")
    return str(given).lower()


def methods(given: Any) -> list[str]:
    """Reads names, separated by commas, of methods that are fitted to the activations of texts without pairs."""
    known = [entry.name for entry in registered() if entry.fits_activations and entry.needs in UNPAIRED]
    names = lower_names(given)
    for each in names:
        if each not in known:
            raise typer.BadParameter(f"{each!r} is not one of {', '.join(known)}; separate several by commas.")
    return names


def lower_names(given: Any) -> list[str]:
    """Names, separated by commas, in lower case and each once."""
    return list(dict.fromkeys(each.strip().lower() for each in str(given).split(",")))


def strengths(given: Any) -> list[float]:
    """Reads numbers above 0, separated by commas."""
    return [number(0.0, MOST, above=True)(each) for each in str(given).split(",")]


def guardrail(given: Any) -> tuple[str, float | None, float | None]:
    """Reads a bound of a measure, as kl<0.5 or distinct2>0.3: its name, the least and the largest value."""
    found = re.fullmatch(r"\s*(\w+)\s*(<=?|>=?|≤|≥)\s*(\S+)\s*", str(given))
    known = (*MEASURES, SPEED, "unrelated_kl", "share")
    if found is None or found[1] not in known:
        raise typer.BadParameter(f"{given!r} bounds none of {', '.join(known)}, as 'kl<0.5' and 'distinct2>0.3' do.")
    bound = (number(0.0, 1.0) if found[1] in SHARES else number(-MOST, MOST))(found[3])
    return (found[1], None, bound) if found[2] in "<=≤" else (found[1], bound, None)


def judge(given: Any) -> str | tuple[Path, Path]:
    """Reads which judge: "texts", "embedded", or two files with a comma between them."""
    if str(given) in ("texts", "embedded"):
        return str(given)
    files = str(given).split(",")
    if len(files) != 2:
        raise typer.BadParameter(f"{given!r} is not texts, embedded or two files, as good2.txt,bad2.txt.")
    return path(files[0]), path(files[1])


def forms(given: Any) -> list[str]:
    """Reads forms of paired prompts, separated by commas."""
    names = list(dict.fromkeys(str(given).split(",")))
    for each in names:
        if each not in FORMS:
            raise typer.BadParameter(f"{each!r} is not one of {', '.join(FORMS)}; separate several by commas.")
    return names


def positions(given: Any) -> list[Position]:
    """Reads reading positions of one token a text, separated by commas."""
    return [one_position(each) for each in str(given).split(",")]


def one_position(given: Any) -> Position:
    """Reads a position of one token a text."""
    text = str(given)
    if reads_several(text):
        raise typer.BadParameter(f"{text!r} reads several tokens of a text; last, mean and -2 read one activation.")
    if text not in ("last", "mean") and not re.fullmatch(INDEX, text):
        raise typer.BadParameter(f"{text!r} is not last, mean or an index such as -2.")
    return position(text)


def position(given: Any) -> Position:
    """Reads a token position: a name or an index."""
    text = str(given)
    if text in ("last", "mean", "all") or random_count(text) is not None:
        return text
    if not re.fullmatch(INDEX, text):
        raise typer.BadParameter(f"{text!r} is not last, mean, all, random:3 or an index such as -2.")
    return int(text)


def layers(given: Any) -> list[int]:
    """Reads layers: numbers with commas between them, or first:end:step as in Python, without the end."""
    text = str(given)
    numbers = r"[0-9]{1,5}"
    if re.fullmatch(rf"{numbers}(,{numbers})*", text):
        found = sorted({int(one) for one in text.split(",")})
    elif re.fullmatch(rf"{numbers}:{numbers}(:{numbers})?", text):
        start, end, *step = map(int, text.split(":"))
        found = [] if step == [0] else list(range(start, end, *step))
    else:
        found = []
    if not found:
        raise typer.BadParameter(f"{text!r} names no layers, as 2,4 or 8:24:4 do.")
    return found


def text(given: Any) -> str:
    """Reads a text that tokenizers accept. Bytes that are not UTF-8 come as surrogates, and are refused."""
    try:
        str(given).encode()
    except UnicodeEncodeError:
        raise typer.BadParameter(f"{str(given)!r} is not UTF-8.") from None
    if "\0" in str(given):
        raise typer.BadParameter("it holds a NUL character.")
    return str(given)


def name(given: Any) -> str:
    """Reads a text that is not blank."""
    if not text(given).strip():
        raise typer.BadParameter("it is empty.")
    return str(given)


def path(given: Any) -> Path:
    """Reads a path; an empty one is refused, because it would be the current folder."""
    if not str(given).strip():
        raise typer.BadParameter("it is empty; '.' is the current folder.")
    if "\0" in str(given):
        raise typer.BadParameter("it holds a NUL character.")
    return Path(str(given))


def output(given: Any) -> Path:
    """Reads the path of what is to be written; - would make a file or folder of that name."""
    if str(given) == "-":
        raise typer.BadParameter("- is standard input, where texts come from; './-' is a file or folder of that name.")
    return path(given)


def address(given: Any) -> str:
    """Reads the address of a server. A login in it is not shown."""
    if "@" in text(given):
        raise typer.BadParameter("An address has no user name and no password: give your key in NDIF_API_KEY.")
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", text(given)):
        raise typer.BadParameter(f"{given!r} is not an address such as http://localhost:5001.")
    return str(given)
