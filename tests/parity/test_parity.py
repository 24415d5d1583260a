"""Half of the quick parity table is good on this stack, over the wheel and a server too; a table tells what it lacks.

`.ci/run` measures the whole table.
"""

import re
from dataclasses import replace
from importlib.metadata import version
from itertools import combinations, product
from pathlib import Path

import pytest
from server_clients import client, installed_wheel, server

from odesteer_tl.parity.table import (
    WAYS,
    Cell,
    conditions,
    faults,
    markdown,
    parity_rows,
    print_parity,
    read,
    written,
)

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
FACTORS = ("llama", "gpt2"), ("single", "batch"), (True, False)
SCRIPT = """
    from dataclasses import asdict
    from itertools import count
    from odesteer_tl.parity import table

    quick, asked, methods = table.conditions(quick=True), count(), len(table.parity_rows())

    def in_turn(_):
        '''Of the two conditions of each family one, and the other one for the next method and for the next way.'''
        number = next(asked)
        turn = number // methods + number % methods
        return [quick[turn % 2], quick[3 - turn % 2]]

    table.conditions = in_turn
    report(cells=[asdict(cell) for cell in table.measured(sys.argv[1], quick=True)])
"""


def in_pairs(cases):
    """Whether every two values of any two of FACTORS meet."""
    return all(
        {(case[one], case[other]) for case in cases} == set(product(FACTORS[one], FACTORS[other]))
        for one, other in combinations(range(3), 2)
    )


def test_every_way_and_method_of_this_stack_is_good():
    cells = [Cell(**cell) for cell in client(SCRIPT, installed_wheel(), server().url)["cells"]]
    assert len(cells) == 2 * len(HERE) * len(parity_rows())
    assert {(c.way, c.method, c.family) for c in cells} == set(product(HERE, parity_rows(), FACTORS[0]))
    for kind, names in (("way", HERE), ("method", parity_rows())):
        for name in names:
            assert in_pairs([(c.family, c.prompts, c.cache) for c in cells if getattr(c, kind) == name]), name
    for cell in cells:
        assert cell.deviation <= 1e-4 and cell.effect >= 0.1, cell


def test_the_quick_table_is_half_of_all_and_every_two_factors_meet():
    assert set(conditions()) == set(product(*FACTORS)) > set(conditions(quick=True))
    assert len(conditions(quick=True)) == 4 and in_pairs(conditions(quick=True))


@pytest.fixture
def cells():
    """A quick table as it should be."""
    return [Cell(way, name, *case, 1e-6, 1.0) for way in HERE for name in parity_rows() for case in conditions(True)]


def test_a_bad_or_missing_cell_is_told_of(cells):
    assert faults(cells) == []
    for bad in ({"deviation": 2e-4}, {"deviation": float("nan")}, {"effect": 0.05}):
        assert len(faults([replace(cells[0], **bad), *cells[1:]])) == 1
    missing = len(set(WAYS) - HERE) * len(parity_rows()) * 4
    assert len(faults(cells, complete=True, quick=True)) == missing
    assert len(faults(cells[1:], complete=True, quick=True)) == missing + 1
    assert len(faults(cells, complete=True)) == missing * 2 + len(cells)


def test_two_installations_make_one_table(cells, tmp_path):
    others = [replace(cell, way=way) for way in set(WAYS) - HERE for cell in cells if cell.way == "nnsight remote"]
    file = tmp_path / "other.json"
    file.write_text(written(others))
    assert read(file) == others
    said = []
    assert print_parity(cells + read(file), as_json=False, complete=True, say=said.append, quick=True)
    lines = said[0].splitlines()
    assert lines[0] == "| | " + " | ".join(WAYS) + " |" and len(lines) == 2 + len(parity_rows()) and "—" not in said[0]
    said.clear()
    assert not print_parity(cells, as_json=False, complete=True, say=said.append, quick=True)
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
