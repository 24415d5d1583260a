"""Random flows end as promised; more of them by `python tests/fuzz_flows.py 300000`."""

from fuzz_flows import flows


def test_random_flows_are_finite_or_refused():
    ends = flows(2000)
    assert sum(ends.values()) == 2000 and ends["finite"] > 1500 and set(ends) == {"finite", "refused"}, ends
