import pytest

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
