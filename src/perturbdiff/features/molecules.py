"""Features of molecules: counts of the neighbourhoods of their atoms, after Morgan.

A neighbourhood is what lies within `radius` bonds of an atom; each of its kinds is hashed to one of `size` bits, and
with c_b the number of neighbourhoods of bit b, the features of a molecule are log(1 + c_b). They are a function of the
molecule and not of how its SMILES is spelt. Stereochemistry is not seen: enantiomers have equal features.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perturbdiff.features.files import labelled_texts
from perturbdiff.features.tables import FeatureTable, features_from

if TYPE_CHECKING:
    from rdkit.Chem import Mol


def read_smiles(path: Path) -> dict[str, str]:
    """The SMILES of each label: the columns `label` and `smiles` of a .csv or .parquet.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `labelled_texts`.
    """
    return labelled_texts(path, ("smiles",))


def fingerprints(smiles: Mapping[str, str], origin: str, *, radius: int = 2, size: int = 1024) -> FeatureTable:
    """Morgan count fingerprints of molecules: log1p of counts, `size` features.

    Args:
        smiles: the SMILES of each label.
        origin: where they are from ("drugs.csv").
        radius: of the neighbourhoods, in bonds; 0 is the atoms alone.
        size: so many bits.

    Raises:
        ValueError: a SMILES is not one; it is named with its label. Or the radius is below 0, the size below 1, or
            there are no molecules.
    """
    from rdkit.Chem import rdFingerprintGenerator
    from rdkit.rdBase import BlockLogs

    if radius < 0 or size < 1:
        raise ValueError(
            f"radius = {radius} and size = {size} make no fingerprint; give a radius of at least 0 and a size of at "
            "least 1."
        )
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=size)
    counts = np.zeros((len(smiles), size), dtype=np.float32)
    with BlockLogs():
        for row, (label, text) in zip(counts, smiles.items(), strict=True):
            row[:] = generator.GetCountFingerprintAsNumPy(_molecule(label, text, origin))
    return features_from(list(smiles), np.log1p(counts), f"Morgan count fingerprints of {origin}")


def _molecule(label: str, text: str, origin: str) -> "Mol":
    from rdkit.Chem import MolFromSmiles

    # what follows a blank would be read as a name, and silently left out
    molecule = MolFromSmiles(text) if len(text.split()) == 1 else None
    if molecule is None or not molecule.GetNumAtoms():
        raise ValueError(
            f"the SMILES {text!r} of label {label!r} in {origin} is none that RDKit reads; mend it, or leave the label "
            "out."
        )
    return molecule
