"""Several files as one: genes that are named alike, in one order, and names that tell all cells apart.

Nothing is joined by guess. Files have the same genes unless the recipe says which of them to take; a name that two
files share is an error unless the recipe says that names are to carry their file; a gene is renamed only where the
table leaves no choice.
"""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff.files.matrices import Matrix
from perturbdiff.recipes.dataset import Expression

_VERSIONED = re.compile(r"(ENS[A-Z]*\d+)\.\d+")
"""An identifier of Ensembl with the number of its version."""

_HEADER = ["identifier", "name"]


def join_genes(genes: Sequence[pd.Index], names: Sequence[str], rule: str) -> pd.Index:
    """The genes of all files together, in the order of the first file.

    Args:
        genes: of each file.
        names: of the files, for errors.
        rule: "same"; "intersection", the genes that every file has; "union", the first file's, then new ones in the
            order in which they appear.

    Raises:
        ValueError: the rule is "same" and a file has other genes than the first; or no gene is in every file.
    """
    first = genes[0]
    if rule == "union":
        together: pd.Index = genes[0].append(list(genes[1:])).drop_duplicates()
        return together
    if rule == "intersection":
        shared = np.logical_and.reduce([first.isin(one) for one in genes])
        if not shared.any():
            raise ValueError(
                f'no gene is in all {len(genes)} files, and join = "intersection" keeps those only; write join = '
                '"union", or give an expression.gene_table that names the genes alike.'
            )
        kept: pd.Index = first[shared]
        return kept
    for one, name in zip(genes[1:], names[1:], strict=True):
        n_shared = int(one.isin(first).sum())
        if n_shared != len(one) or n_shared != len(first):
            raise ValueError(
                f"{name!r} has {len(one)} genes and {names[0]!r} {len(first)}, of which they share {n_shared}, and "
                'files of one recipe must have the same genes; write join = "intersection" or join = "union".'
            )
    return first


def join_note(genes: Sequence[pd.Index], names: Sequence[str], joined: pd.Index) -> str | None:
    """A sentence on genes that are not in every file; None where all files have the same genes."""
    different = len(set().union(*genes))
    lacking = [int((~joined.isin(one)).sum()) for one in genes]
    if any(lacking):
        i = int(np.argmax(lacking))
        n_absent = int((~np.logical_and.reduce([joined.isin(one) for one in genes])).sum())
        return (
            f"{n_absent} of {len(joined)} genes are absent from some of the {len(genes)} files ({lacking[i]} from "
            f"{names[i]!r}): they were not measured there, and hold no counts, which is not a measured zero."
        )
    if different > len(joined):
        return f"{len(joined)} of {different} genes are in all {len(genes)} files; the others are left out."
    return None


def aligned(values: Matrix, genes: pd.Index, joined: pd.Index) -> Matrix:
    """A matrix [n, genes] as [n, joined]; a gene that the file does not have holds no counts."""
    if genes.equals(joined):
        return values
    kept = genes.isin(joined)
    place = joined.get_indexer(genes[kept])
    if isinstance(values, np.ndarray):
        wide = np.zeros((len(values), len(joined)), dtype=values.dtype)
        wide[:, place] = values[:, kept]
        return wide
    own = values if kept.all() else values[:, kept]
    in_order = bool((np.diff(place) > 0).all()) and own.has_sorted_indices
    # sorting works in place, and must not reach the values of the file
    data = own.data if in_order or own is not values else own.data.copy()
    moved = sp.csr_matrix(
        (data, place.astype(own.indices.dtype)[own.indices], own.indptr), shape=(own.shape[0], len(joined))
    )
    moved.sort_indices()
    return moved


def below(values: Sequence[Matrix]) -> Matrix:
    """Matrices with the same columns, one below the other: dense where all of them are."""
    if len(values) == 1:
        return values[0]
    if all(isinstance(one, np.ndarray) for one in values):
        return np.vstack([np.asarray(one) for one in values])
    joined: Matrix = sp.vstack([sp.csr_matrix(one) for one in values], format="csr")
    return joined


def labels_below(labels: "Sequence[pd.Series[Any]]") -> "pd.Categorical[Any]":
    """Labels of several files, one below the other; categories sorted as text."""
    joined: pd.Categorical[Any] = pd.api.types.union_categoricals(list(labels), sort_categories=True)
    return joined


def file_suffixes(paths: Sequence[Path]) -> list[str]:
    """What `cell_names = "with_file"` adds to the names of each file's cells: "-STEM", made unique by "-i"."""
    stems = [path.stem for path in paths]
    while len(set(stems)) < len(stems):
        times = Counter(stems)
        stems = [stem if times[stem] == 1 else f"{stem}-{i}" for i, stem in enumerate(stems)]
    return [f"-{stem}" for stem in stems]


def join_names(names: Sequence[pd.Index], paths: Sequence[Path], rule: str) -> tuple[pd.Index, str | None]:
    """The names of all files' cells, and a sentence where they were changed.

    Args:
        names: of each file's cells.
        paths: of the files.
        rule: "unique", or "with_file" to add its file's name to every cell's.

    Raises:
        ValueError: cells of different files have the same name.
    """
    note = None
    if rule == "with_file":
        suffixes = file_suffixes(paths)
        names = [pd.Index(one.astype(str) + suffix, dtype=str) for one, suffix in zip(names, suffixes, strict=True)]
        note = with_file_note(str(names[0][0]))
    joined = names[0].append(list(names[1:]))
    if len(names) == 1:
        return joined, note
    origin = np.repeat(np.arange(len(names)), [len(one) for one in names])
    once = pd.DataFrame({"name": joined, "file": origin}).drop_duplicates()
    shared = once["name"].duplicated()
    if shared.any():
        example = once["name"][shared].iloc[0]
        first, second = once["file"][once["name"] == example].iloc[:2]
        raise shared_names(once["name"][shared].nunique(), str(example), paths[first], paths[second], rule)
    return joined, note


def with_file_note(name: str) -> str:
    """The sentence on cells whose names carry their file, such as this one."""
    return f"The name of its file was added to the name of every cell, such as {name!r}."


def shared_names(n_names: int, example: str, first: Path, second: Path, rule: str) -> ValueError:
    """The error of cells of different files that have the same name; `rule` as in `join_names`."""
    remedy = "write cell_names = \"with_file\" to add its file's name to every cell's"
    if rule == "with_file":
        remedy = "rename a file or these cells"
    return ValueError(
        f"{n_names} cell names occur in several files, such as {example!r} in {first.name!r} and {second.name!r}, and "
        f"a name must tell a cell apart; {remedy}."
    )


@dataclass(frozen=True)
class GeneTable:
    """New names of genes.

    Attributes:
        source: the file's name.
        names: identifier to name.
        unversioned: the same for identifiers of Ensembl without their version.
        ambiguous: identifiers (without a version) whose name another one has too; they are never renamed.
    """

    source: str
    names: Mapping[str, str]
    unversioned: Mapping[str, str]
    ambiguous: frozenset[str]

    def rename(self, genes: pd.Index) -> tuple[pd.Index, str | None]:
        """The genes of one file renamed where that is unambiguous, and a sentence on how many were and were not.

        A gene keeps its identifier where the table does not know it, or gives its name to another identifier too, or
        where another gene of the file has that name or would get it. An identifier of Ensembl that is not in the table
        is looked up without its version. No sentence where the genes have the table's names already.
        """
        old = [str(gene) for gene in genes]
        wanted = [self._wanted(gene) for gene in old]
        known = set(old)
        times = Counter(name for name in wanted if name is not None)
        new = [
            gene if name is None or (name != gene and name in known) or times[name] > 1 else name
            for gene, name in zip(old, wanted, strict=True)
        ]
        n_renamed = sum(a != b for a, b in zip(old, new, strict=True))
        if not n_renamed and known <= set(self.names.values()):
            return genes, None
        note = f"{self.source!r} renames {n_renamed} of {len(old)} genes; {len(old) - n_renamed} keep their identifier."
        return pd.Index(new, dtype=genes.dtype), note

    def _wanted(self, gene: str) -> str | None:
        base = _base(gene)
        return None if base in self.ambiguous else self.names.get(gene, self.unversioned.get(base))


def gene_table_of(expression: Expression, folder: Path) -> GeneTable | None:
    """The table that a recipe in this folder names, if it does; errors as in `read_gene_table`."""
    return None if expression.gene_table is None else read_gene_table(folder / Path(expression.gene_table).expanduser())


def read_gene_table(path: Path) -> GeneTable:
    """Read a CSV with the columns identifier and name; rows with an empty field name nothing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not text, not a table of these two columns, or gives an identifier two names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no gene table {str(path)!r}; give expression.gene_table the path of a CSV, relative to the "
            "recipe."
        )
    names: dict[str, str] = {}
    for line, row in enumerate(_rows(path), start=2):
        if len(row) != len(_HEADER):
            raise ValueError(
                f"line {line} of gene table {path.name!r} has {len(row)} fields, and each line has two, identifier and "
                "name; mend that line."
            )
        identifier, name = (field.strip() for field in row)
        if not identifier or not name:
            continue
        if names.setdefault(identifier, name) != name:
            raise ValueError(
                f"gene table {path.name!r} names {identifier!r} both {names[identifier]!r} and {name!r}, and an "
                "identifier has one name; remove one of the two lines."
            )
    return _table(path.name, names)


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error):
        raise ValueError(
            f"gene table {path.name!r} is not a CSV; write a text file of lines identifier,name."
        ) from None
    header = [field.strip() for field in rows[0]] if rows else []
    if header != _HEADER:
        raise ValueError(
            f"gene table {path.name!r} begins with {','.join(header)[:80]!r}, and its two columns are identifier,name; "
            "write this as its first line."
        )
    return rows[1:]


def _table(source: str, names: dict[str, str]) -> GeneTable:
    bases: dict[str, set[str]] = {}
    owners: dict[str, set[str]] = {}
    for identifier, name in names.items():
        base = _base(identifier)
        bases.setdefault(base, set()).add(name)
        owners.setdefault(name, set()).add(base)
    several = frozenset(base for shared in owners.values() if len(shared) > 1 for base in shared)
    unversioned = {base: next(iter(found)) for base, found in bases.items() if len(found) == 1}
    return GeneTable(source, names, unversioned, several)


def _base(gene: str) -> str:
    match = _VERSIONED.fullmatch(gene)
    return gene if match is None else match[1]
