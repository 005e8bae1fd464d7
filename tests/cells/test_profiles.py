import numpy as np
import pytest
import scipy.sparse as sp

from perturbdiff.cells.memory import profile_hashes
from perturbdiff.spelling import spelling


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("IFN-beta", "ifn beta", True),
        ("B cells", " B_CELLS", True),
        ("CD14+ Monocytes", "CD14+ monocytes", True),
        ("Straße", "STRASSE", True),
        ("CD16+ monocytes", "CD16- monocytes", False),
        ("A+B", "AB", False),
        ("[('X', 0.5, 'uM')]", "[('X', 5.0, 'uM')]", False),
        ("drug 1.0", "drug 10", False),
        ("IL-1", "IL-11", False),
    ],
)
def test_spelling_forgets_case_and_punctuation_but_not_signs_and_numbers(one, other, same):
    assert (spelling(one) == spelling(other)) is same


def test_profiles_hash_alike_exactly_where_rows_are_equal(rng):
    values = rng.poisson(0.7, (96, 30)).astype(np.float32)
    values[40:60] = values[20:40]
    values[70] = values[5][::-1]
    values[80], values[81] = 0, 0
    hashes, expressed = profile_hashes(sp.csr_matrix(values))
    np.testing.assert_array_equal(expressed, (values > 0).sum(1))
    equal = (values[:, None] == values[None]).all(-1)
    np.testing.assert_array_equal(hashes[:, None] == hashes[None], equal)
    np.testing.assert_array_equal(profile_hashes(values)[0], hashes)


def test_an_explicit_zero_does_not_change_a_profile():
    plain = sp.csr_matrix(np.array([[1.0, 0.0, 2.0]]))
    stored = sp.csr_matrix((np.array([1.0, 0.0, 2.0]), np.arange(3), np.array([0, 3])), shape=(1, 3))
    for one, other in zip(profile_hashes(plain), profile_hashes(stored), strict=True):
        np.testing.assert_array_equal(one, other)
