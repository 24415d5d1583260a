"""Random command lines end as documented; benchmarks run more of them."""

from fuzz_command_line import lines

from odesteer_tl.cli.exit_codes import DONE, REFUSED


def test_random_command_lines_end_in_documented_codes():
    ends = lines(60)
    assert ends[DONE] > 5 and ends[REFUSED] > 20 and set(ends) <= {DONE, REFUSED}, ends
