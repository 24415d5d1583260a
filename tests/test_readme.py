"""The example that a newcomer types first does what it says."""

import re
from pathlib import Path

import pytest

import odesteer_tl as ot

ROOT = Path(__file__).parents[1]
EXAMPLE = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


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


def test_the_package_shows_the_same_example():
    lines = [line.removeprefix("    ") for line in (ot.__doc__ or "").splitlines()]
    assert EXAMPLE is not None and EXAMPLE[1].strip() in "\n".join(lines)


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", "odesteer_tl/assets/MODEL_CARD.md"]
)
def test_links_between_documents_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert all(((ROOT / name).parent / link).exists() for link in links)
