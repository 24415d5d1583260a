"""Messages on the command line: in its own words, and on one line."""

import re

OWN_WORDS = {
    r"paired=True": "--paired",
    r"\bqueries=(\[[^\]]*\])?": "--queries FILE",
    r"\bposition=": "--position ",
    r"\brelative_T=": "--relative-T ",
    r"\brelative_T\b": "--relative-T",
    r"(?<!-)\bT=": "--T ",
    r"\blayer=": "--layer ",
    r"\btop_p\b": "--top-p",
    r"\bmax_new_tokens\b": "--max-new-tokens",
    r"ot\.load_model\(name\)": "--model NAME",
    r"; activations are read with .*": ".",
    r"(\w+) holds NaN or inf in (\d+) of \d+ rows; drop them first": (
        r"the model gives NaN or inf for \2 \1 texts: its weights are not finite"
    ),
}
"""What the messages of the package call things, and what those are on the command line."""

MOST_CHARACTERS = 900


def in_own_words(message: str) -> str:
    """A message of the package, with what it calls arguments as options."""
    for theirs, own in OWN_WORDS.items():
        message = re.sub(theirs, own, message)
    return message


def on_one_line(message: str, most: int = MOST_CHARACTERS) -> str:
    """A message without line ends and control characters, which may come from a file or a server; its middle left out
    where it is longer than `most` characters."""
    line = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in " ".join(message.split())
    )
    return line if len(line) <= most else f"{line[: most // 2]} … {line[-most // 2 + 3 :]}"
