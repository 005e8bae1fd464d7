import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from perturbdiff.features.molecules import fingerprints, read_smiles

DRUGS = {"ethanol": "CCO", "benzene": "c1ccccc1", "aspirin": "CC(=O)Oc1ccccc1C(=O)O", "salt": "[Na+].[Cl-]"}


def test_two_spellings_of_a_molecule_have_equal_fingerprints():
    other = {"ethanol": "OCC", "benzene": "C1=CC=CC=C1", "aspirin": "O=C(C)Oc1c(cccc1)C(O)=O", "salt": "[Cl-].[Na+]"}
    a, b = fingerprints(DRUGS, "a"), fingerprints(other, "b")
    assert a.labels == b.labels
    assert np.array_equal(a.values, b.values)
    assert len(np.unique(a.values, axis=0)) == len(DRUGS)


def test_features_are_the_logarithms_of_counts():
    """Of radius 0 an atom is its own neighbourhood: ethane has two of a kind, and benzene six."""
    table = fingerprints({"ethane": "CC", "benzene": "c1ccccc1", "methane": "C"}, "x", radius=0)
    counts = np.expm1(table.rows(["ethane", "benzene", "methane"]))
    np.testing.assert_allclose(counts.max(axis=1), [2, 6, 1], rtol=1e-6)
    np.testing.assert_allclose(counts.sum(axis=1), [2, 6, 1], rtol=1e-6)


def test_a_wider_radius_adds_neighbourhoods_and_loses_none():
    sums = [np.expm1(fingerprints(DRUGS, "x", radius=radius).values).sum(axis=1) for radius in (0, 1, 2)]
    assert (sums[0] <= sums[1]).all()
    assert (sums[1] <= sums[2]).all()
    assert (sums[0] < sums[2]).any()


def test_the_order_of_molecules_does_not_matter_and_the_size_is_the_width():
    reverse = dict(reversed(DRUGS.items()))
    a, b = fingerprints(DRUGS, "drugs.csv", size=256), fingerprints(reverse, "drugs.csv", size=256)
    assert a.labels == b.labels == tuple(sorted(DRUGS))
    assert np.array_equal(a.values, b.values)
    assert (a.width, a.origin) == (256, "Morgan count fingerprints of drugs.csv")


@pytest.mark.parametrize("smiles", ["CCX", "C1CC", "c1cccc1", "CC(C)(C)(C)(C)C", "CCO ethanol", "", "("])
def test_what_is_no_smiles_is_named_with_its_label_and_nothing_is_printed(smiles, capfd):
    with pytest.raises(ValueError, match=r"^the SMILES '.*' of label 'bad' in x.csv is none that RDKit reads; .*\.$"):
        fingerprints({"good": "C", "bad": smiles}, "x.csv")
    assert tuple(capfd.readouterr()) == ("", "")


def test_what_makes_no_fingerprint_is_refused():
    with pytest.raises(ValueError, match=r"^radius = -1 and size = 8 make no fingerprint; give a radius of"):
        fingerprints(DRUGS, "x", radius=-1, size=8)
    with pytest.raises(ValueError, match="radius = 2 and size = 0 make no"):
        fingerprints(DRUGS, "x", size=0)
    with pytest.raises(ValueError, match="fingerprints of x has 0 labels and 1024 features"):
        fingerprints({}, "x")


def test_smiles_are_read_from_a_table(tmp_path):
    path = tmp_path / "drugs.csv"
    pd.DataFrame({"label": DRUGS.keys(), "smiles": DRUGS.values(), "price": 1.5}).to_csv(path, index=False)
    assert read_smiles(path) == DRUGS
    path.write_text("label,SMILES\na,C\n")
    with pytest.raises(
        ValueError, match=r"^drugs.csv has no column 'smiles', .*; the nearest is 'SMILES'; rename it.$"
    ):
        read_smiles(path)
    path.write_text("label,smiles\na,C\na,CC\n")
    with pytest.raises(ValueError, match=r"^drugs.csv has 2 rows of label 'a'"):
        read_smiles(path)
    path.write_text("label,smiles\na,C\nb,\n")
    with pytest.raises(ValueError, match=r"^label 'b' of drugs.csv has '' in column 'smiles'"):
        read_smiles(path)
    with pytest.raises(FileNotFoundError, match="there is no file of texts"):
        read_smiles(tmp_path / "none.csv")


def test_rdkit_is_imported_where_it_is_used_only():
    code = "import sys, perturbdiff.features.molecules; sys.exit('rdkit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
