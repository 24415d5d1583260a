"""The quick parity table is complete and good on this stack, over the wheel and a server too, and it tells what is not.

`.ci/run` measures the whole table.
"""

import re
from dataclasses import replace
from importlib.metadata import version
from itertools import combinations, product
from pathlib import Path

import pytest
from server_clients import client, installed_wheel, server

from odesteer_tl.parity import table
from odesteer_tl.parity.table import WAYS, Cell, faults, markdown, parity_rows, print_parity, read, written

TABLE = Path(__file__).parents[2] / "docs" / "parity.md"
NNSIGHT = {"nnsight steering", "nnsight intervene", "nnsight remote"}
HERE = (
    {"Hugging Face"}
    | NNSIGHT
    | (
        {"HookedTransformer 3.9", "TransformerBridge 3.9"}
        if version("transformer_lens").startswith("3.")
        else {"TransformerBridge 4.x"}
    )
)
SCRIPT = """
    from dataclasses import asdict
    from odesteer_tl.parity.table import measured
    report(cells=[asdict(cell) for cell in measured(sys.argv[1], quick=True)])
"""


@pytest.fixture(scope="module")
def cells():
    return [Cell(**cell) for cell in client(SCRIPT, installed_wheel(), server().url)["cells"]]


def test_every_cell_of_this_stack_is_there_and_good(cells):
    keys = [(c.way, c.method, c.family, c.prompts, c.cache) for c in cells]
    factors = ("llama", "gpt2"), ("single", "batch"), (True, False)
    every = set(product(HERE, parity_rows(), *factors))
    assert len(keys) == len(set(keys)) == len(every) / 2 and set(keys) <= every
    for way, method in product(HERE, parity_rows()):  # every two factors meet
        mine = [key[2:] for key in keys if key[:2] == (way, method)]
        for one, other in combinations(range(3), 2):
            assert {(key[one], key[other]) for key in mine} == set(product(factors[one], factors[other]))
    for cell in cells:
        assert cell.deviation <= 1e-4 and cell.effect >= 0.1, cell


def test_a_bad_or_missing_cell_is_told_of(cells):
    assert faults(cells) == []
    for bad in ({"deviation": 2e-4}, {"deviation": float("nan")}, {"effect": 0.05}):
        assert len(faults([replace(cells[0], **bad), *cells[1:]])) == 1
    missing = len(set(WAYS) - HERE) * len(parity_rows()) * 4
    assert len(faults(cells, complete=True, quick=True)) == missing
    assert len(faults(cells[1:], complete=True, quick=True)) == missing + 1
    assert len(faults(cells, complete=True)) == missing * 2 + len(cells)


def test_two_installations_make_one_table(cells, monkeypatch, tmp_path):
    others = [replace(cell, way=way) for way in set(WAYS) - HERE for cell in cells if cell.way == "nnsight remote"]
    file = tmp_path / "other.json"
    file.write_text(written(others))
    assert read(file) == others
    monkeypatch.setattr(table, "measured", lambda remote, quick: cells)
    said = []
    assert print_parity("a url", [file], as_json=False, complete=True, say=said.append, quick=True)
    lines = said[0].splitlines()
    assert lines[0] == "| | " + " | ".join(WAYS) + " |" and len(lines) == 2 + len(parity_rows()) and "—" not in said[0]
    said.clear()
    assert not print_parity("a url", [], as_json=False, complete=True, say=said.append, quick=True)
    assert any("No cell for" in line for line in said)
    file.write_text('[{"way": 1}]')
    with pytest.raises(ValueError, match="parity --json"):
        read(file)


def test_a_method_that_a_way_lacks_is_an_empty_cell(cells):
    rest = [cell for cell in cells if (cell.way, cell.method) != (WAYS[-1], "CAA")]
    (row,) = [line for line in markdown(rest).splitlines() if line.startswith("| CAA")]
    assert row.split("|")[-2].strip() == "—" and row.count("—") == 1


def test_a_cell_shows_the_worst_of_its_kind(cells):
    worse = [replace(cell, deviation=5e-5, effect=0.25) if number == 0 else cell for number, cell in enumerate(cells)]
    assert "5e-05 / 0.2" in markdown(worse)


def test_the_readme_shows_a_full_table():
    rows = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    head = next(number for number, row in enumerate(rows) if WAYS[0] in row)
    assert [cell.strip() for cell in rows[head].strip("|").split("|")][1:] == list(WAYS)
    shown = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in rows[head + 2 : head + 2 + len(parity_rows())]
    ]
    assert [row[0] for row in shown] == list(parity_rows())
    for _, *values in shown:
        assert len(values) == len(WAYS)
        for value in values:
            deviation, effect = re.fullmatch(r"(\S+) / (\S+)", value).groups()
            assert float(deviation) <= 1e-4 and float(effect) >= 0.1
