"""Several sources in one stream: by their weights, each epoch by epoch, on one panel."""

from itertools import islice

import numpy as np
import pytest
import torch

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.core.choices import COVARIATES
from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.populations.epochs import Populations
from perturbdiff.populations.mixture import Aligned, MixedPopulations
from perturbdiff.recipes.dataset import Columns, Expression
from perturbdiff.simulation.screen import simulate
from perturbdiff.training.processes import Processes
from perturbdiff.training.streams import PopulationStream

COLUMNS = Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="assay_batch")
SIZES = {"n_genes": 40, "n_cell_types": 2, "n_assay_batches": 2, "n_perturbations": 2}


@pytest.fixture(scope="module")
def sources():
    """Two sources that share 30 of 40 genes each."""
    made = []
    for seed, cells_per_group in ((0, 9), (1, 30)):
        adata = simulate("additive", **SIZES, cells_per_group=cells_per_group, control_cells_per_group=12, seed=seed)
        adata.var_names = [f"g{i + 10 * seed}" for i in range(40)]
        adata.obs_names = [f"{name}-{seed}" for name in adata.obs_names]
        made.append(
            cells_from_anndata(adata, columns=COLUMNS, expression=Expression(scale="counts"), control="control")
        )
    return made


PANEL = [f"g{i}" for i in range(5, 45)]


@pytest.fixture(scope="module")
def members(sources):
    vocabularies = {
        name: Vocabulary(name, tuple(sorted({str(one) for cells in sources for one in cells.labels[name]})))
        for name in COVARIATES
    }
    return [
        Populations(
            Aligned.to(cells, PANEL),
            cells.runs.whole(),
            PANEL,
            2.0,
            vocabularies,
            cells_per_population=4,
            control_share=0.2,
            seed=0,
        )
        for cells in sources
    ]


def test_each_source_has_its_share_of_every_chunk_whatever_its_size(members):
    mixture = MixedPopulations(members, [3.0, 1.0], seed=0)
    for slab in islice(mixture.slabs(), 3):
        shares = np.bincount([draw.source for draw in slab.draws]) / len(slab.draws)
        np.testing.assert_allclose(shares, [0.75, 0.25], atol=1 / mixture.chunk)


def test_every_source_is_gone_through_epoch_by_epoch(members):
    mixture = MixedPopulations(members, [1.0, 2.0], seed=0)
    drawn = [draw for slab in islice(mixture.slabs(), 2) for draw in slab.draws]
    for i, member in enumerate(members):
        own = [draw.rows for draw in drawn if draw.source == i][: 2 * len(member)]
        for epoch in range(len(own) // len(member)):
            rows = np.concatenate(own[epoch * len(member) : (epoch + 1) * len(member)])
            planned = np.concatenate([draw.rows for draw in member.plan(epoch)])
            np.testing.assert_array_equal(rows, planned)


def test_a_mixture_begins_anywhere_as_if_it_had_begun_at_the_start(members):
    mixture = MixedPopulations(members, [1.0, 2.0], seed=3)
    n_drawn = 3 * mixture.chunk
    whole = mixture.plan(0, n_drawn)
    assert [draw.key for draw in whole] == list(range(n_drawn))
    for first in (1, mixture.chunk, mixture.chunk + 7):
        (slab,) = islice(mixture.slabs(first), 1)
        assert slab.first == first
        for draw, expected in zip(slab.draws, whole[first:], strict=False):
            assert (draw.key, draw.source, draw.condition) == (expected.key, expected.source, expected.condition)
            np.testing.assert_array_equal(draw.rows, expected.rows)


def test_a_minibatch_holds_each_sources_own_expression_and_nothing_for_genes_it_lacks(members, sources):
    mixture = MixedPopulations(members, [1.0, 1.0], seed=0)
    batch, draws = next(iter(PopulationStream(mixture, per_batch=12))), {draw.key: draw for draw in mixture.plan(0)}
    assert {draws[key].source for key in batch.key.tolist()} == {0, 1}
    for i, key in enumerate(batch.key.tolist()):
        draw = draws[key]
        cells = sources[draw.source]
        known = [gene for gene in PANEL if gene in cells.genes]
        expected = cells.log_expression(known, cells.order[draw.rows]).toarray() / np.float32(2)
        found = batch.perturbed[i, : len(draw.rows)].numpy()
        lacking = [j for j, gene in enumerate(PANEL) if gene not in cells.genes]
        assert len(lacking) == 5
        np.testing.assert_array_equal(np.delete(found, lacking, axis=1), expected)
        assert not found[:, lacking].any()


def test_processes_share_out_a_mixture_too(members):
    mixture = MixedPopulations(members, [1.0, 3.0], seed=0)
    steps = 30
    alone = list(islice(PopulationStream(mixture, per_batch=6), steps))
    shares = [
        list(islice(PopulationStream(mixture, per_batch=6, share=Processes(rank, 2)), steps)) for rank in range(2)
    ]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(whole.key, torch.cat([part.key for part in parts]))
        assert torch.equal(whole.perturbed, torch.cat([part.perturbed for part in parts]))


def test_an_aligned_source_tells_which_genes_it_has(sources):
    aligned = Aligned.to(sources[0], PANEL)
    assert aligned.present.tolist() == [gene in sources[0].genes for gene in PANEL]
    with pytest.raises(ValueError, match="none of the panel's 2 genes, such as 'ENSG1', is in the data"):
        Aligned.to(sources[0], ["ENSG1", "ENSG2"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "1 weights do not fit 2 sources"),
        ([1.0, 0.0], "must be positive and finite; leave out a source of weight 0"),
        ([1.0, float("nan")], "must be positive and finite"),
        ([1e9, 1.0], "is less than one population in 16384; raise it"),
    ],
)
def test_weights_that_cannot_be_kept_are_refused(members, weights, message):
    with pytest.raises(ValueError, match=message):
        MixedPopulations(members, weights, seed=0)


def test_a_minibatch_has_the_totals_of_each_sources_control_cells(members, sources):
    mixture = MixedPopulations(members, [1.0, 1.0], seed=0)
    draws = mixture.plan(0, 30)
    batch = mixture.batch(draws)
    for i, draw in enumerate(draws):
        cells = sources[draw.source]
        wanted = cells.total_counts[cells.order[draw.control_rows]]
        np.testing.assert_array_equal(batch.totals[i, : len(wanted)], wanted)
        assert (batch.totals[i, len(wanted) :] == 1).all()


def test_a_source_without_known_totals_leaves_a_shared_minibatch_without_any(members, sources):
    class Untold(type(members[1])):
        def batch(self, draws, loaded=None):
            return super().batch(draws, loaded)._replace(totals=None)

    untold = Untold.__new__(Untold)
    vars(untold).update(vars(members[1]))
    mixture = MixedPopulations([members[0], untold], [1.0, 1.0], seed=0)
    draws = mixture.plan(0, 30)
    assert mixture.batch(draws).totals is None
    assert mixture.batch([draw for draw in draws if draw.source == 0]).totals is not None
