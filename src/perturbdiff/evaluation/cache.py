"""What was computed of the observed cells, kept between evaluations: their tests of differential expression.

A file of the cache is named by a hash of all that its numbers depend on: the content of the observed file (and of the
one that the control cells come from), how it is read, the judged genes, conditions and cells, the seed, the version of
the tests. So it is found where nothing has changed, and is never out of date. It is written whole or not at all; one
that cannot be read is made again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow.parquet

from perturbdiff.evaluation.pairs import Pairs
from perturbdiff.io import whole_file
from perturbdiff.metrics.conditions import Condition
from perturbdiff.metrics.differential_expression import RankSum

VERSION = 2
"""Raised with every change of the tests."""

_AT_ONCE = 1 << 22
_PARQUET: Any = pyarrow.parquet


def content_hash(path: Path) -> str:
    """SHA-256 over all bytes of a file, or of a folder's files and their names."""
    digest = hashlib.sha256()
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if part.is_file():
            digest.update(part.relative_to(path).as_posix().encode() if path.is_dir() else b"")
            for chunk in _chunks(part):
                digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_AT_ONCE):
            yield chunk


@dataclass(frozen=True)
class Cache:
    """A folder of tests of observed cells.

    Attributes:
        folder: made where it is not there, when the first file is kept.
        identity: of the files and of how they are read, as text.
    """

    folder: Path
    identity: str

    def key(self, pairs: Pairs) -> str:
        """The name under which the tests of these conditions, genes and control cells are kept."""
        said = [VERSION, self.identity, pairs.seed, pairs.genes, pairs.conditions]
        digest = hashlib.sha256(json.dumps(said).encode())
        for rows in pairs.observed_rows.values():  # not all cells of a condition need take part
            digest.update(rows.tobytes())
        return digest.hexdigest()[:32]

    def path(self, pairs: Pairs, suffix: str = ".npz") -> Path:
        """The file of these tests."""
        return self.folder / f"observed-{self.key(pairs)}{suffix}"

    def load(self, pairs: Pairs) -> dict[Condition, RankSum]:
        """The tests of the observed cells by condition; nothing where they are not kept."""
        path, shape = self.path(pairs), (len(pairs.conditions), len(pairs.genes))
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                p_value, effect = kept["p_value"], kept["effect"]
        except (OSError, ValueError, KeyError, BadZipFile, EOFError):
            return {}
        if p_value.shape != shape or effect.shape != shape:
            return {}
        return {condition: RankSum(p_value[i], effect[i]) for i, condition in enumerate(pairs.conditions)}

    def keep(self, pairs: Pairs) -> Callable[[str, Callable[[], Any]], Any]:
        """A function that gives a table by its name: the kept one, or one that is made now and kept.

        Tables of pandas and of polars are kept as parquet and come back as what they were.
        """

        def table(name: str, made: Callable[[], Any]) -> Any:  # noqa: ANN401 - a table of pandas or of polars
            paths = {kind: self.path(pairs, f"-{name}.{kind}.parquet") for kind in ("polars", "pandas")}
            for kind, path in paths.items():
                try:
                    found = _PARQUET.read_table(path)
                except (OSError, ValueError):
                    continue
                return import_module("polars").from_arrow(found) if kind == "polars" else found.to_pandas()
            found = made()
            kind = "polars" if hasattr(found, "write_parquet") else "pandas"
            with whole_file(paths[kind]) as partial:
                if kind == "polars":
                    found.write_parquet(partial)
                else:
                    found.to_parquet(partial)
            return found

        return table

    def save(self, pairs: Pairs, tests: Mapping[Condition, RankSum]) -> None:
        """Keep the tests of all conditions."""
        arrays: dict[str, Any] = {
            "p_value": np.stack([tests[condition].p_value for condition in pairs.conditions]),
            "effect": np.stack([tests[condition].effect for condition in pairs.conditions]),
        }
        with whole_file(self.path(pairs)) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
