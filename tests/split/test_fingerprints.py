"""Held-out cells that pretraining has seen are found, by their values or their names, with all hashes or a share."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.recipes.dataset import Columns, Expression
from perturbdiff.recipes.selection import HoldOut
from perturbdiff.split.fingerprints import Seen
from perturbdiff.split.rules import split_cells

RULES = [HoldOut(part="test", perturbation=("A",), cell_type=("B",)), HoldOut(part="validation", perturbation=("C",))]
N = 200


def made(seed=0, names="cell", add=0):
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"p": ["ctrl", "A", "B", "C"] * N, "t": ["B", "B", "T", "T"] * N})
    obs.index = [f"{names}{i}" for i in range(len(obs))]
    counts = rng.poisson(3.0, (len(obs), 30)).astype(np.float32) + 1 + add
    columns = Columns(perturbation="p", cell_type="t")
    adata = anndata.AnnData(sp.csr_matrix(counts), obs=obs)
    return cells_from_anndata(adata, columns=columns, expression=Expression(scale="counts"), control="ctrl")


@pytest.fixture(scope="module")
def split():
    return split_cells(made(), RULES, seed=0)


def test_the_training_cells_of_the_same_split_are_no_leak(split):
    assert list(Seen.of("same", split.source, split.of("train")).leaks(split)) == []


def test_held_out_cells_are_found_by_their_values_under_any_name(split):
    other = made(names="another")
    leaks = list(Seen.of("copy", other, other.runs.whole()).leaks(split))
    assert len(leaks) == 2
    assert leaks[1].startswith(f"the test part ({N} cells) has {N} cells with exactly the expression of a cell that ")
    assert "pretraining on 'copy' has seen; pretrain with the same cells held out." in leaks[1]


def test_held_out_cells_are_found_by_their_names_on_another_panel(split):
    other = made(add=1)
    leaks = list(Seen.of("panel", other, other.runs.whole()).leaks(split))
    assert f"has {N} cells with the name of a cell" in leaks[1]


def test_a_few_equal_barcodes_are_chance(split):
    other = made(seed=1, names="x")
    other = other.take(np.arange(100))
    few = made().names.to_numpy(dtype=object)[:3]
    names = other.names.to_numpy(dtype=object)
    names[:3] = few
    object.__setattr__(other, "names", pd.Index(names))
    assert list(Seen.of("chance", other, other.runs.whole()).leaks(split)) == []


def test_a_share_of_the_hashes_finds_them_too(split):
    other = made(names="another")
    seen = Seen.of("copy", other, other.runs.whole(), at_most=N)
    assert len(seen.profiles) < 2 * N
    leaks = list(seen.leaks(split))
    assert len(leaks) == 2
    assert "that were looked at" in leaks[1]
