"""Makes the notebooks from the scripts, and runs them.

    python tutorials/build.py                                       # all: tutorials/NN_name.ipynb, executed
    python tutorials/build.py 02 --model smollm2 --data DATA --out elsewhere     # on another model

A script (jupytext's percent format) is what people edit and review; its notebook holds the same cells with what they
printed. `--model` and `--data` replace the values of the cell that is tagged "parameters".
"""

import argparse
import os
import re
import resource
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SCRIPTS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
KEPT = ("tags",)
"""What a cell's metadata keep; the rest changes with the program that opened it."""


def notebook_of(script: Path, **parameters: str | None) -> Any:
    """The notebook of a script, not executed; a parameter that is not None replaces `NAME = …` in the tagged cell.

    Raises ValueError for a parameter that the script does not have.
    """
    import jupytext

    notebook = jupytext.read(script)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # not by chance, so that a notebook built again differs only where it says more
        cell.metadata = {key: value for key, value in cell.metadata.items() if key in KEPT}
    (tagged,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    for name, value in parameters.items():
        if value is not None:
            line = f"{name} = {value!r}"
            tagged.source, found = re.subn(rf"^{name} = .*$", lambda match, line=line: line, tagged.source, flags=re.M)
            if not found:
                raise ValueError(f"{script.name} has no {name} in its first cell.")
    return notebook


def executed(notebook: Any, timeout: int | None = 900) -> Any:
    """The notebook after all cells ran, in a fresh kernel and an empty folder. Raises nbclient's CellExecutionError
    where a cell fails, and CellTimeoutError where one takes longer than `timeout` seconds."""
    import tempfile

    from nbclient import NotebookClient

    os.environ["ODESTEER_TL_PROGRESS"] = "0"
    with tempfile.TemporaryDirectory() as place:
        NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": place}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of this run
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Build, execute and write the scripts that are named, or all; print time, memory and size."""
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 02; default: all")
    parser.add_argument("--model", help="a folder or a Hugging Face name; default: the embedded model")
    parser.add_argument("--data", help="a folder with truthfulqa/TruthfulQA.csv, for 02")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    for script in SCRIPTS:
        if args.names and not script.name.startswith(tuple(args.names)):
            continue
        start = time.perf_counter()
        given = {"MODEL": args.model, "DATA": args.data if script.name.startswith("02") else None}
        notebook, file = notebook_of(script, **given), args.out / f"{script.stem}.ipynb"
        try:
            notebook = executed(notebook, timeout=None)
        finally:  # where a claim fails on another model, one wants to see the numbers
            if args.out != FOLDER or all(cell.get("execution_count", 1) for cell in notebook.cells):
                nbformat.write(notebook, file)
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # of the largest kernel so far
        seconds, size = time.perf_counter() - start, file.stat().st_size / 1000
        print(f"{file.name}: {seconds:.0f} s, {size:.0f} kB, at most {most:.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
