"""Some of the attacks on saved folders; `benchmarks/fuzz.py` runs them for hours."""

import pytest
from fuzz_artefacts import flips, folders, kills, loads
from instances import without_shape_checks


def test_a_killed_save_leaves_the_old_method_or_the_new_one():
    counts = kills(40)
    assert sum(counts.values()) == 40 and len(counts) == 2


def test_a_folder_is_never_read_as_a_mixture_of_what_two_processes_save():
    assert sum(loads(150).values()) == 150


def test_a_flipped_bit_is_refused():
    counts = flips(150)
    assert counts["refused"] >= 140 and set(counts) <= {"refused", "equal"}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_changed_folder_is_refused_or_whole(seed):
    with without_shape_checks():
        counts = folders(150, seed)
    assert counts["refused"] > 100
