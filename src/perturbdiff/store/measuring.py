"""The moments of a store's genes over the training cells of its recipe, kept in the store.

A pass over the training cells, of which the panel and the scale follow for the recipe's own hold-outs; whoever trains
with others measures again.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from perturbdiff.cells.measure import measure
from perturbdiff.recipes.dataset import Recipe
from perturbdiff.split.rules import split_cells
from perturbdiff.store.layout import MOMENTS, file_hash
from perturbdiff.store.manifest import read_manifest, write_manifest
from perturbdiff.store.stored import Store
from perturbdiff.store.workdir import unit

_LOG = logging.getLogger(__name__)


def keep_moments(folder: Path, recipe: Recipe, track: Any) -> None:  # noqa: ANN401
    """Measure the training cells of the recipe's split and write the moments into the store in `folder`.

    Where the hold-outs do not fit the cells, a sentence says so, and the store does without: they may be mended later.
    """
    store = Store.open(folder)
    try:
        # the seed of a training that says nothing else
        seed, m = int(recipe.training.get("seed", 0)), recipe.training.get("cells_per_population")
        split = split_cells(store, recipe.hold_out, seed=seed, cells_per_population=m)
    except ValueError as error:
        _LOG.info(f"The gene moments are left to the training, since the hold-outs do not fit: {error}")
        return
    moments = measure(store, None, split.of("train"), track)
    with unit(folder / MOMENTS) as partial:
        moments.to_table().rename_axis("gene").reset_index().to_parquet(partial, index=False)
    manifest = read_manifest(folder)
    hashes = manifest.hashes | {MOMENTS: file_hash(folder / MOMENTS)}
    write_manifest(replace(manifest, hashes=hashes, moments=split.hash), folder)
