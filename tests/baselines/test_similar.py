"""Similar contexts say what `cells.contexts` expects of the trained conditions, and nothing of unseen perturbations."""

import numpy as np
import pytest

from perturbdiff.baselines.pseudobulk import pseudobulks
from perturbdiff.baselines.similar import SimilarContexts
from perturbdiff.cells.contexts import Carried, Changes
from perturbdiff.cells.moments import trusted

CONTEXTS = {"A": [1.0, 1.5, 3.0], "B": [4.0, 1.0, 2.0], "C": [4.0, 8.0, 1.0], "D": [3.9, 1.2, 2.1]}
SHIFTS = {
    ("p", "A"): [1.0, 0.0, 0.5],
    ("p", "B"): [2.0, 0.0, 0.3],
    ("p", "C"): [3.0, 0.0, 0.1],
    ("q", "A"): [0.0, 1.0, 0.0],
    ("q", "C"): [0.0, 3.0, 0.0],
    ("r", "B"): [0.5, 0.5, 0.5],
}


@pytest.fixture
def cells(make_shifted):
    return make_shifted(SHIFTS, CONTEXTS)


@pytest.fixture
def similar(cells, trained):
    return SimilarContexts(trained(cells))


def test_what_is_expected_is_that_of_the_changes_of_the_pseudobulks(cells, similar):
    bulks = pseudobulks(cells, list(cells.genes))
    labels = sorted({label for label, _ in SHIFTS})
    changes = Changes(
        label=np.array([labels.index(label) for label, _ in bulks.conditions]),
        context=np.array(["ABCD".index(kind) for _, kind in bulks.conditions]),
        sizes=bulks.sizes,
        changes=bulks.shifts.astype(np.float32),
        noise=bulks.noise,
        contexts=tuple((kind, "") for kind in "ABCD"),
        means=bulks.controls.astype(np.float32),
    ).fitted()
    given = np.array([3.5, 1.3, 2.0])
    r = changes.similarity(given)
    assert similar.shift("p", "unknown", given) == pytest.approx(changes.expected(0, r))
    # where training has the perturbation in the cell type, its own change counts
    assert similar.shift("p", "A", given) == pytest.approx(changes.expected(0, r, own=0))
    assert similar.shift("q", "B", given) == pytest.approx(changes.expected(1, r, own=1))


def test_with_one_other_context_it_is_the_change_there_without_its_noise(cells, similar):
    bulks = pseudobulks(cells, list(cells.genes))
    place = bulks.place["r", "B"]
    shift, noise = bulks.shifts[place], bulks.noise[place]
    kept = similar.changes.across.share * trusted(shift, noise)
    assert ((kept > 0) & (kept <= 1)).all()
    for given in CONTEXTS.values():
        assert similar.shift("r", "C", np.array(given)) == pytest.approx(kept * shift, rel=1e-5)


def test_the_more_similar_context_counts_more(cells, trained):
    similar = SimilarContexts(trained(cells))
    close = Changes(**{**vars_of(similar.changes), "across": Carried(0.05), "within": Carried(0.05)})
    similar.changes = close
    like_b, like_c = (similar.shift("p", "new", np.array(CONTEXTS[kind])) for kind in "BC")
    assert like_b[0] < like_c[0]


def vars_of(changes):
    return {name: getattr(changes, name) for name in changes.__dataclass_fields__}


def test_a_perturbation_that_training_has_nowhere_is_refused_with_the_reason(similar):
    assert similar.refusal("s", "A") == "training has 's' in no cell type"
    assert similar.refusal("r", "A") == ""
