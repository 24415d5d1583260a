"""The example that a newcomer types first does what it says."""

import functools
import re
import textwrap
from pathlib import Path

import pytest
from instances import without_shape_checks
from server_clients import client, installed_wheel, server

import odesteer_tl as ot
from odesteer_tl.assets import model_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(.*?)```", README, re.DOTALL)
NNSIGHT = (ROOT / "docs" / "nnsight.md").read_text(encoding="utf-8")
LOCAL, REMOTE, FOUND = re.findall(r"```python\n(.*?)```", NNSIGHT, re.DOTALL)
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "odesteer_tl/assets/MODEL_CARD.md"]
DOCUMENTS += ["tutorials/README.md"]
DOCUMENTS += [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
RUN = ["index", "choose", "faq", *(f"howto/{path.stem}" for path in sorted((ROOT / "docs/howto").glob("*.md")))]
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def test_the_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    assert EXAMPLE is not None and EXAMPLE[1].count("\n") <= 15
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(EXAMPLE[1], "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("The film opens with")
    (steered,) = names["report"].tokens_steered.values()
    assert list(names["report"].tokens_steered) == [2] and 1 <= steered <= 40  # fewer where the text ends early
    assert len(names["out"].texts) == 40
    again = ot.load(tmp_path / "praise")
    a = names["acts"].desired
    assert again.steer(a, relative_T=0.2).equal(names["method"].steer(a, relative_T=0.2))


_demo = functools.cache(ot.load_demo)


@pytest.mark.parametrize("page", RUN)
def test_the_pages_of_the_site_run_as_printed(page, tmp_path, monkeypatch, capsys):
    """Blocks of one page after each other; where a page says "gpt2", the embedded model's folder stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ot, "load_demo", _demo)
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    names: dict = {}
    with without_shape_checks():
        for _, block in BLOCK.findall(text):
            code = textwrap.dedent(block).replace('"gpt2"', repr(str(model_folder())))
            exec(compile(code, f"{page}.md", "exec"), names)
    printed = capsys.readouterr().out
    said = r"(True|False)(?: (True|False))*$"
    told = [m[0][2:] for m in re.finditer(rf"# {said}", text, re.MULTILINE)]
    assert names and told == [m[0] for m in re.finditer(rf"^{said}", printed, re.MULTILINE)]
    if page == "faq":
        rows = re.findall(r"^\| (?:`\"(\w+)\"|`(slice.*?)`).*\| (\d+) \|$", text, re.MULTILINE)
        counts = {word or f"{rule[:-1]}, None)": int(count) for word, rule, count in rows}
        assert names["counts"] == counts and len(counts) == 5
    if page == "index":
        assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")


def test_the_nnsight_examples_run_as_printed_here_and_on_a_server():
    """`remote=True` asks NDIF_HOST; the server lacks this package, and takes the embedded model for float16."""
    before = """
    from nnsight.schema.config import CONFIG
    CONFIG.API.HOST = sys.argv[1]
    """
    between = """
    here = logits
    text = model.tokenizer.decode(tokens[0])
    """
    after = """
    with model.trace("The film opens with"):
        plain = nnsight.save(model.lm_head.output)
    report(
        text=text, steered=out.report.tokens_steered[2], rows=[len(acts.desired), len(out.texts)],
        changed=float((here - plain).abs().max()), moved=float((remote_logits - plain).abs().max()),
        strength=strong.relative_T,
    )
    """
    parts = [textwrap.dedent(part) for part in (before, LOCAL, between, REMOTE, FOUND, after)]
    found = client("\n".join(parts), installed_wheel(), server().url)
    assert found["text"].startswith("The film opens with") and len(found["text"]) > 60
    assert found["rows"] == [40, 4] and 4 <= found["steered"] <= 40
    assert 0.01 < found["strength"] < 1
    assert found["changed"] > 0.5 and found["moved"] > 0.5


def test_the_package_shows_the_same_example():
    lines = [line.removeprefix("    ") for line in (ot.__doc__ or "").splitlines()]
    assert EXAMPLE is not None and EXAMPLE[1].strip() in "\n".join(lines)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_between_documents_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert all(((ROOT / name).parent / link).exists() for link in links)
