"""The site, as far as it can be checked without mkdocs: names, pages, links and anchors."""

import html
import importlib
import inspect
import json
import posixpath
import re
import threading
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import site_pages
import torch
from instances import without_shape_checks

import odesteer_tl as ot

ROOT = Path(__file__).parents[1]
SETTINGS = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
NAV = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", SETTINGS.partition("\nnav:\n")[2], re.MULTILINE)
PAGES = {name: page for name, page in site_pages.pages().items() if page.endswith(".md")}
REFERENCE = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
ENTRY = re.compile(r"^::: (\S+)\n(?:    options:\n(?:      .*\n)*?      members: \[(.*)\]\n)?", re.MULTILINE)
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
ENTRIES = ENTRY.findall(REFERENCE + "\n")


def named(path: str) -> Any:
    """The object of a dotted path: the longest part that is a module, and what is in it."""
    parts = path.split(".")
    thing = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        try:  # a module before a function of the same name, as mkdocstrings takes it
            thing = importlib.import_module(".".join(parts[:number]))
        except ModuleNotFoundError:
            thing = getattr(thing, part)
    return thing


def slugs(text: str) -> set[str]:
    """The anchors of a file's headings, as GitHub and the site make them."""
    text = re.sub(FENCED, "", text)
    headings = [re.sub(r"\]\([^)]*\)", "", line) for line in re.findall(r"^#+ +(.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def body(name: str) -> str:
    """The text of a page, a notebook as the site shows it."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return text if name.endswith(".md") else site_pages.markdown_of(json.loads(text), Path(name).stem)[0]


def test_every_public_name_is_in_the_reference_once():
    found = [id(named(path)) for path, _ in ENTRIES if not inspect.ismodule(named(path)) or path.endswith("plots")]
    for name in ot.__all__:
        assert found.count(id(getattr(ot, name))) == 1, name
        assert re.search(rf"\b{name}\b", (ROOT / "docs/reference/index.md").read_text(encoding="utf-8")), name


@pytest.mark.parametrize(("path", "members"), ENTRIES)
def test_what_the_reference_names_is_there(path, members):
    thing = named(path)
    for member in filter(None, members.split(", ")):
        assert hasattr(thing, member) or member in getattr(thing, "__dataclass_fields__", {}), f"{path}.{member}"


def test_a_token_map_of_a_notebook_is_one_line_of_html():
    """Markdown takes HTML to end at an empty line, and a browser reads &#10; in an attribute as the line's end."""
    shown = {"text/html": ['<iframe srcdoc="&lt;p&gt;a\n', '\nb&lt;/p&gt;"></iframe>'], "text/plain": "TokenPage"}
    notebook = {"cells": [{"cell_type": "code", "source": "report.show()", "outputs": [{"data": shown}]}]}
    text, pictures = site_pages.markdown_of(notebook, "any")
    line = text.rstrip().splitlines()[-1]
    assert html.unescape(line) == html.unescape("".join(shown["text/html"])) and not pictures


def test_every_page_is_in_the_navigation_once_and_exists():
    notebooks = [page for name, page in PAGES.items() if name.endswith(".ipynb")]  # put there by site_pages.on_config
    assert sorted(NAV + notebooks) == sorted(PAGES.values())
    assert all((ROOT / name).exists() for name in PAGES)


def links(text: str) -> list[tuple[str, str]]:
    """The targets and anchors of a text's links to files, code left out."""
    found = site_pages.LINK.finditer(re.sub(FENCED, "", text))
    return [(m["target"], (m["anchor"] or "").removeprefix("#")) for m in found if "://" not in m["target"]]


@pytest.mark.parametrize("name", PAGES)
def test_links_and_anchors_lead_somewhere_on_github_and_on_the_site(name):
    text, site = body(name), {page: file for file, page in site_pages.pages().items()}
    drawn = name.endswith(".ipynb") and re.compile(rf"{Path(name).stem}_\d+\.png")
    for target, anchor in links(text):
        if not (drawn and drawn.fullmatch(target)):
            file = (ROOT / name).parent / target
            assert file.exists() and (not anchor or anchor in slugs(file.read_text(encoding="utf-8"))), target
    for target, anchor in links(site_pages.with_site_links(text, name)):
        if not (drawn and drawn.fullmatch(target)):
            file = site[posixpath.normpath(posixpath.join(posixpath.dirname(PAGES[name]), target))]
            assert not anchor or anchor in slugs(body(file)), target


def test_links_out_of_the_site_lead_to_the_repository_or_are_text(monkeypatch):
    """As in the guide, which names folders of the package."""
    text = (
        "[a](../odesteer_tl/methods) [b](methods.md#planted-answers) [c](../benchmarks/README.md) [d](https://x.org/y)"
    )
    monkeypatch.setattr(site_pages, "repository", lambda: None)
    same = "[b](methods.md#planted-answers) [c](benchmarks/README.md) [d](https://x.org/y)"
    assert site_pages.with_site_links(text, "docs/guide.md") == f"a {same}"
    monkeypatch.setattr(site_pages, "repository", lambda: "https://example.org/r/")
    led = site_pages.with_site_links(text, "docs/guide.md")
    assert led == f"[a](https://example.org/r/blob/HEAD/odesteer_tl/methods) {same}"


def test_notebooks_keep_what_they_printed_and_drew():
    stem = "03_your_own_hooks"
    notebook = json.loads((ROOT / f"tutorials/{stem}.ipynb").read_text(encoding="utf-8"))
    text, pictures = site_pages.markdown_of(notebook, stem)
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == len(drawn) > 0 and all(data.startswith(b"\x89PNG") for data in pictures.values())
    assert all(f"]({name})" in text for name in pictures)
    assert all("".join(output["text"]).rstrip() in text for output in outputs if output["output_type"] == "stream")
    assert text.startswith("# Hooks of your own\n") and "](https://colab" not in text


@pytest.mark.parametrize("name", PAGES)
def test_no_page_holds_a_formula_that_the_site_cannot_draw(name):
    assert "$$" not in body(name)


def test_the_methods_are_all_among_those_to_choose_from():
    text = (ROOT / "docs" / "choose.md").read_text(encoding="utf-8")
    from odesteer_tl import methods

    assert [name for name in [*methods.__all__, "ALQR", "SPID"] if f"ot.{name}" not in text] == []


def _in_another_thread(model: Any, work: Callable[[], Any]) -> None:
    """Does the work while this thread steers the model, and raises what it raises."""
    caught: list[BaseException] = []

    def attempt() -> None:
        try:
            work()
        except RuntimeError as error:
            caught.append(error)

    with ot.steering(model, _method(), T=1.0):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        model("The film")
    raise caught[0]


def _acts(**kind: Any) -> ot.ContrastiveActivations:
    rows = torch.randn(2, 12, 256, generator=torch.Generator().manual_seed(0))
    return ot.ContrastiveActivations(rows[0] + 0.5, rows[1], layer=2, **kind)


def _method(**kind: Any) -> ot.CAA:
    return ot.CAA.fit(_acts(**kind))


QUOTED: dict[str, Callable[[Any], Any]] = {
    "No token was steered": lambda m: ot.generate(m, "The film", _method(), T=1.0, positions=slice(1000, None)),
    "Give either T or relative_T": lambda m: ot.generate(m, "The film", _method()),
    "T counts …: pass T …, and no relative_T": lambda m: ot.generate(m, "A", ot.Ablation.fit(_acts()), relative_T=0.2),
    "The rows begin or end in different numbers of the pad token": lambda m: ot.generate(
        m, torch.tensor([[1, 50, 60], [1, 50, m.tokenizer.pad_token_id]])
    ),
    "A chat needs a template": lambda m: ot.generate(m, [{"role": "user", "content": "How was it?"}]),
    "nothing tells the sides apart": lambda m: ot.CAA.fit(ot.collect(m, ["A film"], ["A film"], layer=2)),
    "fitted on centred weights and this model has raw ones": lambda m: ot.generate(
        m, "The film", _method(processing="centred"), T=1.0
    ),
    "does not spend … nats": lambda m: ot.calibrate(m, ot.LinearAcT.fit(_acts()), ["The film"], 50.0, max_new_tokens=2),
    "remote=True needs an nnsight model": lambda m: ot.generate(m, "The film", remote=True),
    "Another thread has a block of ot.steering … open": lambda m: _in_another_thread(
        m, lambda: ot.generate(m, "The film", _method(), T=1.0)
    ),
    "No decoder blocks": lambda m: ot.collect(
        m.original_model, torch.tensor([[1]]), torch.tensor([[2]]), 2, blocks="x"
    ),
}
"""What the FAQ quotes of an error, and a call that meets it."""


def test_the_errors_that_the_faq_quotes_are_said():
    text = " ".join((ROOT / "docs" / "faq.md").read_text(encoding="utf-8").split())
    headings = re.findall(r'^## "(.*)"$', (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(headings) <= set(QUOTED)
    model = ot.load_demo().model
    with without_shape_checks(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for quote, call in QUOTED.items():
            assert f'"{quote}' in text, quote
            with pytest.raises((ValueError, RuntimeError), match=".*".join(map(re.escape, re.split(" ?… ?", quote)))):
                call(model)


def test_the_citation_is_of_this_version():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {project['version']}\n" in citation and f"\nlicense: {project['license']}\n" in citation
    entries = (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")
    assert f"version = {{{project['version']}}}" in entries
    for paper in ("2602.17560", "2604.19018"):
        assert paper in citation and paper in entries
    cited = re.findall(r"family-names: (\w+), given-names: ([\w ]+)", citation)
    assert len(cited) == 14 and all(f"{family}, {given}" in entries for family, given in cited)
