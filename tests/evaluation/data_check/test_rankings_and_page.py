"""Rankings against scikit-learn and draws, near-duplicates by brute force, and a page that escapes every text."""

import pytest
import torch
from planted_texts import clean, fillers
from sklearn.metrics import roc_auc_score

from odesteer_tl.evaluation.data_check.near_duplicates import NEAR, near, normal, same, units_of
from odesteer_tl.evaluation.data_check.rankings import folds_of_units, ranking
from odesteer_tl.evaluation.data_check.report import Area, DataCheck, Item, OddText


def scores(n: int, seed: int, copies: int = 1) -> torch.Tensor:
    """Desired scores are a standard deviation above undesired ones; each stands there `copies` times."""
    drawn = torch.randn(2 * n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn[:n] += 1
    return drawn.repeat_interleave(copies)


def whole(values: torch.Tensor, units: list[int]):
    everything = torch.ones(len(values), dtype=torch.bool)
    return ranking("drawn", lambda _, held: values[held], [(everything, everything)], len(values) // 2, units)


def test_the_auc_is_scikit_learns():
    values = scores(30, 0).round(decimals=1)  # with ties
    assert whole(values, list(range(60))).auc == pytest.approx(roc_auc_score([1] * 30 + [0] * 30, values.numpy()))


@pytest.mark.parametrize("copies", [1, 4])
def test_the_error_is_the_spread_over_draws_also_of_copies(copies):
    """Of four copies that count as one unit; as texts of their own their error would be half of it."""
    units = torch.arange(80).repeat_interleave(copies).tolist()
    found = [whole(scores(40, seed, copies), units) for seed in range(200)]
    spread = float(torch.tensor([one.auc for one in found]).std())
    assert sum(one.error for one in found) / len(found) == pytest.approx(spread, rel=0.15)


def test_no_unit_is_cut_by_a_fold():
    units = [row // 3 for row in range(30)] * 2
    for fit, held in folds_of_units(30, units, 0):
        assert not {units[row] for row in fit.nonzero()[:, 0]} & {units[row] for row in held.nonzero()[:, 0]}
    with pytest.raises(ValueError, match="Only 10 desired and 1 undesired texts are independent"):
        folds_of_units(30, units[:30] + [99] * 30, 0)


def test_near_duplicates_are_those_of_all_couples_by_brute_force():
    texts = [*clean(10)[0], *[text.replace("so I", "so we") for text in clean(10)[0]], fillers()[0], fillers()[0] + "!"]

    def shingles(text: str) -> set[str]:
        return {normal(text)[start : start + 5] for start in range(len(normal(text)) - 4)}

    sets = [shingles(text) for text in texts]
    couples = {
        (a, b) for b in range(len(texts)) for a in range(b) if len(sets[a] & sets[b]) >= NEAR * len(sets[a] | sets[b])
    }
    assert near(texts) == couples and len(couples) >= 10
    assert same(texts) == {(20, 21)} and units_of(5, {(0, 3), (3, 4)}) == [0, 1, 2, 0, 0]


def test_a_page_escapes_every_text_and_loads_nothing():
    bad = "<script>alert(1)</script>\u202e"
    found = DataCheck((Item("a", "look", bad, bad),), (OddText("desired", 0, 0.1, -1.0, bad),), (Area(bad, 0.5, 0.1),),
                      None, (8, 9))  # fmt: skip
    assert "<script" not in found.html and "\u202e" not in found.html and found.html.count("&lt;script&gt;") == 4
    assert "default-src 'none'" in found.html and "http" not in found.html.replace("http-equiv", "")
    assert "<script" not in found._repr_html_() and 'sandbox=""' in found._repr_html_()


@pytest.mark.parametrize(
    ("given", "gravest"), [(["pass"], "pass"), (["pass", "look"], "look"), (["stop", "look"], "stop")]
)
def test_the_verdict_is_the_gravest(given, gravest):
    assert DataCheck(tuple(Item("a", one, "") for one in given), (), (), None, (8, 8)).verdict == gravest
