"""A summary tells what its draws do: means, intervals, the parts of their spread, and probabilities."""

import numpy as np
import pytest

from perturbdiff.families.intervals import fewest
from perturbdiff.families.summary import COLUMNS, Drawn, Reading, summarised


@pytest.fixture(scope="module")
def drawn():
    """4,000 populations: a gene that differs between donors, one by sampling alone, a constant one; a programme."""
    rng = np.random.default_rng(0)
    donors, sampling = rng.normal(0, 0.4, 4000), rng.normal(0, 0.3, (4000, 2))
    changes = np.column_stack([1 + donors + sampling[:, 0], sampling[:, 1], np.zeros(4000), 0.5 + donors])
    errors = np.tile([0.09, 0.09, 0.0, 0.0], (4000, 1))
    return Drawn(changes, errors, 3)


def test_a_summary_has_a_row_for_each_gene_and_programme(drawn):
    table = summarised(drawn, ["a", "b", "c", "p"], Reading())
    assert list(table["feature"]) == ["a", "b", "c", "p"]
    assert list(table["kind"]) == ["gene", "gene", "gene", "programme"]
    assert tuple(table.columns[2:]) == COLUMNS


def test_the_spread_is_told_apart_into_donors_and_cells(drawn):
    table = summarised(drawn, list("abcp"), Reading()).set_index("feature")
    assert table["sd"]["a"] == pytest.approx(0.5, rel=0.05)
    assert table["sd_donors"].to_dict() == pytest.approx({"a": 0.4, "b": 0, "c": 0, "p": 0.4}, abs=0.04)
    assert table["sd_cells"].to_dict() == pytest.approx({"a": 0.3, "b": 0.3, "c": 0, "p": 0})


def test_intervals_and_probabilities_are_shares_of_draws(drawn):
    table = summarised(drawn, list("abcp"), Reading(level=0.8, threshold=1.0, top=1)).set_index("feature")
    changes = drawn.changes
    inside = (changes[:, 0] >= table["low"]["a"]) & (changes[:, 0] <= table["high"]["a"])
    assert inside.mean() == pytest.approx(0.8, abs=0.002)
    assert table["mean_change"]["a"] == pytest.approx(1, abs=0.03)
    assert table["p_up"]["b"] == pytest.approx(0.5, abs=0.03)
    assert table["p_changed"]["a"] == pytest.approx(0.5, abs=0.03)
    assert table["p_top"]["a"] + table["p_top"]["b"] == pytest.approx(1)
    assert table["p_top"]["c"] == 0
    assert np.isnan(table["p_top"]["p"])


def test_an_interval_needs_enough_populations_to_be_more_than_their_range():
    assert [fewest(level) for level in (0.5, 0.8, 0.95)] == [3, 9, 39]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"level": 1.0}, r"level=1\.0 is a share of populations and must lie between 0 and 1"),
        ({"threshold": -0.1}, r"threshold=-0\.1 is a size of change and must be at least 0"),
        ({"threshold": float("nan")}, "threshold=nan is a size of change"),
        ({"top": 0}, "top=0 must be at least 1"),
    ],
)
def test_what_cannot_be_read_off_draws_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Reading(**wrong).check()
