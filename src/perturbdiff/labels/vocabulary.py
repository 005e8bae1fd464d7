"""Labels as indices.

A vocabulary sends the labels of one covariate to 1, 2, ...; index 0 is the covariate's trained null, which stands
for "unknown, absent or dropped". The empty label is the null and is never part of a vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from perturbdiff.spelling import nearest


def columns_of(panel: Sequence[str] | pd.Index, genes: pd.Index) -> npt.NDArray[np.int64]:
    """The column of each gene of a panel among the genes of the data.

    Raises:
        ValueError: a gene is not there; the nearest is named.
    """
    place = genes.get_indexer(pd.Index(panel)).astype(np.int64)
    if (place < 0).any():
        absent = str(list(panel)[int(np.argmax(place < 0))])
        raise ValueError(
            f"{int((place < 0).sum())} of {len(place)} genes are not in the data, such as {absent!r}; "
            f"{nearest(absent, genes)}, or align the panel to the data's genes first."
        )
    return place


@dataclass(frozen=True)
class Vocabulary:
    """The labels of one covariate, in the order of their indices 1, 2, ...; index 0 is the trained null.

    Attributes:
        name: the covariate ("perturbation", "cell_type", "assay_batch").
        labels: unique, none of them empty. May be empty: then every label is the null.
        others_are_null: whether any other label is the null, too, and not an error.

    Raises:
        ValueError: a label is empty or occurs twice.
    """

    name: str
    labels: tuple[str, ...]
    others_are_null: bool = False

    def __post_init__(self) -> None:
        if "" in self.labels:
            raise ValueError(f"the {self.name} vocabulary holds the empty label, which means the null; leave it out.")
        if len(set(self.labels)) != len(self.labels):
            twice = next(one for one in self.labels if self.labels.count(one) > 1)
            raise ValueError(f"{self.name} {twice!r} is twice in the vocabulary; name each label once.")

    def __len__(self) -> int:
        """The number of labels, the null not counted."""
        return len(self.labels)

    def index(self, label: str) -> int:
        """The index of a label: 0 for the empty one (and others, where they are null), else its place + 1.

        Raises:
            ValueError: the label is not in the vocabulary; the nearest one is named.
        """
        if label == "" or (self.others_are_null and label not in self.labels):
            return 0
        try:
            return self.labels.index(label) + 1
        except ValueError:
            raise ValueError(self._unknown(label)) from None

    def encode(self, series: "pd.Series[str]") -> npt.NDArray[np.int64]:
        """The indices of a column of labels, one lookup per category.

        Raises:
            ValueError: a label that occurs is not in the vocabulary, or a value is missing.
        """
        categorical = pd.Categorical(series)
        codes = np.asarray(categorical.codes)
        if (codes < 0).any():
            raise ValueError(
                f"{int((codes < 0).sum())} cells have no {self.name}, and every cell needs a label; "
                "use the empty label for the null."
            )
        place = {label: i + 1 for i, label in enumerate(self.labels)} | {"": 0}
        table = np.zeros(len(categorical.categories), dtype=np.int64)
        for code in np.unique(codes):
            label = str(categorical.categories[code])
            if label not in place and not self.others_are_null:
                raise ValueError(self._unknown(label))
            table[code] = place.get(label, 0)
        return table[codes]

    @classmethod
    def from_labels(cls, name: str, series: "pd.Series[str]") -> "Vocabulary":
        """The sorted labels that occur in a column, the empty one left out."""
        return cls(name, tuple(sorted({str(label) for label in pd.unique(series)} - {""})))

    def _unknown(self, label: str) -> str:
        return (
            f"{self.name} {label!r} is not one of the {len(self)} labels known here; "
            f"{nearest(label, self.labels)}, and the empty label stands for the trained null."
        )
