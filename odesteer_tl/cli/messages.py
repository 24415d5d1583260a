"""Messages on the command line: with the names of its options, and on one line."""

import re

CLI_WORDS = {
    r'the rows in check\["duplicates"\]\.numbers\["rows"\], which --json prints': "the rows that --json lists",
    r', check\["across"\]\.numbers\["rows"\]': " (--json lists the rows)",
    r" \(check\.texts\)": "",
    r"give other layers= and positions=": "give other --layers, or another --position",
    r"paired=True": "--paired",
    r"\bqueries=(\[[^\]]*\])?": "--queries FILE",
    r"\bposition=": "--position ",
    r"\brelative_T=": "--relative-T ",
    r"\brelative_T\b": "--relative-T",
    r"(?<!-)\bT=": "--T ",
    r"\blayer=": "--layer ",
    r"\bkl=": "--kl ",
    r"examples= with forms=\('few-shot',\)": "--examples FILE with --forms few-shot",
    r"give more questions=, or another writer\. See found\.dropped": "give more --questions, or another model",
    r"pass other features, such as features=ot\.Polynomial\(\), or other texts": "give other texts",
    r"give questions= as a list": "give --questions FILE",
    r"give more in questions=": "give more in --questions FILE",
    r"\bchat=True": "--chat",
    r": pass a Jinja template, or a function of the text, as chat_template=, or plain texts without it": (
        ": leave out --chat, or give a model with one"
    ),
    r"\bout=(?=[,.])": "--out",
    r"type ot\.calibrate\(model, method, prompts\) for this use": "run `odesteer-tl calibrate` for this use",
    r"\btop_p\b": "--top-p",
    r"(?<!\.)\bmax_new_tokens\b": "--max-new-tokens",
    r"ot\.load_model\(name\)": "--model NAME",
    r"; activations are read with .*": ".",
    r" keep_sinks=True reads them with the others;[^.]*\.": "",  # commands have no such options
    r"; pass keep_sinks=True to read them without this warning": "",
    r"(\w+) holds NaN or inf in (\d+) of \d+ rows; drop them first": (
        r"the model gives NaN or inf for \2 \1 texts: its weights are not finite"
    ),
}
"""Names in the messages of the package (patterns), and the same on the command line."""

MAX_CHARACTERS = 900


def in_cli_words(message: str) -> str:
    """A message of the package, with the names of arguments replaced by those of options."""
    for pattern, option in CLI_WORDS.items():
        message = re.sub(pattern, option, message)
    return message


def _listed(message: str) -> str:
    """The indented lines below a colon, one after the other with semicolons between them."""
    return re.sub(r"\n  (?=\S)", "; ", re.sub(r":\n  (?=\S)", ": ", message))


def on_one_line(message: str, max_characters: int = MAX_CHARACTERS) -> str:
    """A message without line ends and control characters, which may come from a file or a server. If it is longer than
    `max_characters`, its middle is left out."""
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in " ".join(_listed(message).split())
    )
    return (
        line if len(line) <= max_characters else f"{line[: max_characters // 2]} … {line[-max_characters // 2 + 3 :]}"
    )
