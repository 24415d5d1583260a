"""Laws of the tutorials: every script runs from scratch, its notebook is built from it, and every one ends in claims.

pip install -e '.[dev,tutorials]' -c constraints.txt && pytest tutorials        # some minutes on two cores
"""

import ast
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from build import FOLDER, SCRIPTS, executed, notebook_of

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # two kernels run at a time, and would take two threads each

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")
ROOT = FOLDER.parent
every = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def kept(script: Path):
    """The notebook in the repository."""
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


@every
def test_it_runs_from_scratch_and_its_claims_hold(script):
    """On the embedded model, offline, in a fresh kernel; a claim that fails is an error of its cell."""
    last = [cell for cell in executed(notebook_of(script)).cells if cell.cell_type == "code"][-1]
    assert "\nassert all(" in last.source and "claims.values())" in last.source.splitlines()[-1]
    said = "".join(output.get("text", "") for output in last.outputs)
    assert said.count("holds ") >= 3 and "FAILS" not in said and "not claimed" not in said


@every
def test_the_notebook_holds_the_cells_of_the_script_and_their_outputs(script):
    cells, own = kept(script).cells, notebook_of(script).cells
    say = f"python tutorials/build.py {script.name[:2]}"
    assert [(cell.cell_type, cell.source) for cell in cells] == [(cell.cell_type, cell.source) for cell in own], say
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), say
    figures = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert figures >= 2, say


@every
def test_the_notebook_is_small_and_names_no_place_of_the_machine_that_built_it(script):
    text = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not re.search(r"/(root|home|tmp|Users)/", text)


@every
def test_every_figure_is_one_call_of_the_package(script):
    """Nobody draws by hand: what a reader sees, one call on an own model's results draws too."""
    assert not re.search(r"matplotlib|pyplot|plt\.|\.savefig|\.axes", script.read_text(encoding="utf-8"))
    for cell in kept(script).cells:
        if cell.cell_type == "code" and any("image/png" in output.get("data", {}) for output in cell.outputs):
            drawn = ast.parse(cell.source).body[-1]
            assert isinstance(drawn, ast.Expr) and ast.unparse(drawn).startswith("ot.plots."), cell.source[-200:]


@every
def test_it_begins_with_a_badge_and_one_cell_for_a_model_of_ones_own(script):
    cells = notebook_of(script).cells
    assert colab_address(script) in cells[0].source
    assert cells[1].metadata["tags"] == ["parameters"] and cells[1].source.startswith("MODEL = None")
    assert notebook_of(script, MODEL="a/b").cells[1].source.startswith("MODEL = 'a/b'")
    with pytest.raises(ValueError, match="has no SEED"):
        notebook_of(script, SEED="1")


def colab_address(script: Path) -> str:
    """Of the notebook at Colab where `pyproject.toml` says which GitHub repository this is; else Colab's own page,
    where the file can be uploaded."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    home = project.get("urls", {}).get("Repository")
    colab = "https://colab.research.google.com/"
    if home is None:
        return f"({colab})"
    return f"({colab}github{home.split('github.com', 1)[1]}/blob/main/tutorials/{script.stem}.ipynb)"


def test_the_readme_lists_every_notebook():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"({script.stem}.ipynb)" in text for script in SCRIPTS)
