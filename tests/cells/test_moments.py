from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.cells import measure as measuring
from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.cells.measure import measure
from perturbdiff.cells.moments import STANDS_OUT, Moments, trusted
from perturbdiff.cells.order import Loaded, Runs, Segments
from perturbdiff.files.container import read_anndata
from perturbdiff.recipes.dataset import Columns, Expression

KANG = Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="batch")
GENES = [f"G{g}" for g in range(12)]
SUMS = ("counts", "counts_squared", "logs", "logs_squared")
FACTS = (*SUMS, "lowest", "highest")


class Asked:
    """A source that gives exactly the rows asked for, and remembers how many at a time; `mess` spoils their order."""

    bytes_per_cell = 0.0

    def __init__(self, logs, mess=None):
        self.logs, self.mess = sp.csr_matrix(logs, dtype=np.float32), mess
        self.asked, self.held = [], []
        self.genes = pd.Index(GENES[: logs.shape[1]])
        self.runs = runs_of(logs.shape[0])

    def reader(self, genes, segments):
        self.held.append(segments.n_cells)
        return SimpleNamespace(load=lambda positions: self.load(self.genes.get_indexer(genes), positions))

    def load(self, place, positions):
        assert (np.diff(positions) > 0).all()
        self.asked.append(len(positions))
        rows = self.logs[positions][:, place]
        return Loaded(positions, rows if self.mess is None else shuffled(rows, self.mess))


class Whole(Asked):
    """A source that gives all of its rows at any time, as cells in memory do."""

    def load(self, place, positions):
        return Loaded(np.arange(self.logs.shape[0]), self.logs[:, place])


def runs_of(n_cells, size=7):
    offsets = np.append(np.arange(0, n_cells, size), n_cells).astype(np.int64)
    label = pd.Categorical([f"{i:05d}" for i in range(len(offsets) - 1)])
    return Runs(pd.DataFrame({"perturbation": label, "cell_type": label, "assay_batch": label}), offsets, None)


def shuffled(matrix, rng):
    """The same matrix with each row's values in another order, and with some zeros stored."""
    stored = sp.coo_matrix(np.ones(matrix.shape))
    keep = (matrix.toarray().ravel() != 0) | (rng.random(stored.nnz) < 0.2)
    row, column = stored.row[keep], stored.col[keep]
    order = np.lexsort((rng.random(len(row)), row))
    row, column = row[order], column[order]
    values = matrix.toarray()[row, column]
    indptr = np.searchsorted(row, np.arange(matrix.shape[0] + 1))
    return sp.csr_matrix((values, column.astype(np.int32), indptr.astype(np.int32)), shape=matrix.shape)


def same(a, b):
    assert list(a.genes) == list(b.genes)
    assert a.n_cells == b.n_cells
    return all(np.array_equal(getattr(a, fact), getattr(b, fact)) for fact in FACTS)


@pytest.fixture
def logs(rng):
    """Expression [500, 12], three quarters zeros; gene 3 absent, gene 4 the same in all cells, gene 5 in one cell."""
    logs = np.log1p(rng.poisson(0.3, (500, len(GENES))) * rng.uniform(1, 400, (500, 1))).astype(np.float32)
    logs[:, 3] = 0
    logs[:, 4] = 0.1
    logs[:, 5] = 0
    logs[437, 5] = 2.5
    return logs


@pytest.fixture(params=[2, 7, 64, 499, 500, 2048])
def cells_of_a_block(request, monkeypatch):
    monkeypatch.setattr(measuring, "_CELLS", request.param)
    return request.param


@pytest.mark.parametrize("kind", [Asked, Whole])
def test_the_sums_are_those_of_the_dense_values(logs, kind, cells_of_a_block):
    source = kind(logs)
    found = measure(source, None, source.runs.whole())
    dense = logs.astype(np.float64)
    counts = np.expm1(dense)
    assert found.n_cells == 500
    assert list(found.genes) == GENES
    expected = (counts.sum(axis=0), (counts**2).sum(axis=0), dense.sum(axis=0), (dense**2).sum(axis=0))
    for fact, value in zip(SUMS, expected, strict=True):
        np.testing.assert_allclose(getattr(found, fact), value, rtol=1e-13)
    assert np.array_equal(found.lowest, logs.min(axis=0))
    assert np.array_equal(found.highest, logs.max(axis=0))


def test_a_poisson_genes_moments_are_those_of_its_law(rng):
    """Counts c with a total of 10^4 are their own count per 10^4: mean 2 and mean square 2 + 2^2."""
    n = 40_000
    source = Asked(np.log1p(rng.poisson(2.0, (n, 1)).astype(np.float32)))
    found = measure(source, None, source.runs.whole())
    assert found.counts[0] / n == pytest.approx(2, abs=5 * np.sqrt(2 / n))
    assert found.counts_squared[0] / n == pytest.approx(6, abs=5 * np.sqrt(58 / n))  # E c^4 - (E c^2)^2 = 94 - 36


@pytest.mark.parametrize("size", [2, 5, 50])
def test_the_sums_over_the_parts_of_any_partition_add_up_to_those_of_the_whole(logs, size, rng):
    source = Asked(logs)
    whole = measure(source, None, source.runs.whole())
    part = rng.integers(0, size, 500)
    parts = [measure(source, None, Segments.of(source.runs, np.flatnonzero(part == i))) for i in range(size)]
    assert sum(one.n_cells for one in parts) == whole.n_cells
    for fact in SUMS:
        np.testing.assert_allclose(sum(getattr(one, fact) for one in parts), getattr(whole, fact), rtol=1e-13)
    assert np.array_equal(np.min([one.lowest for one in parts], axis=0), whole.lowest)
    assert np.array_equal(np.max([one.highest for one in parts], axis=0), whole.highest)


def test_only_the_cells_of_the_stretches_are_measured(logs, cells_of_a_block, rng):
    chosen = np.flatnonzero(rng.random(500) < 0.3)
    source = Asked(logs)
    found = measure(source, None, Segments.of(source.runs, chosen))
    alone = Asked(logs[chosen])
    assert same(found, measure(alone, None, alone.runs.whole()))


def test_two_sources_of_the_same_cells_give_the_same_bits(logs, cells_of_a_block, rng):
    sources = [Asked(logs), Whole(logs), Asked(logs, mess=rng)]
    found = [measure(source, None, source.runs.whole()) for source in sources]
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_how_many_blocks_are_read_at_once_changes_no_bit(logs, monkeypatch):
    monkeypatch.setattr(measuring, "_CELLS", 32)
    source = Asked(logs)
    found = []
    for blocks in (1, 3, 100):
        monkeypatch.setattr(measuring, "_BLOCKS", blocks)
        found.append(measure(source, None, source.runs.whole()))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_genes_come_in_the_order_asked_for_with_the_bits_they_have_among_all_genes(logs):
    source = Asked(logs)
    everything = measure(source, None, source.runs.whole())
    panel = ["G7", "G2", "G5"]
    found = measure(source, panel, source.runs.whole())
    assert list(found.genes) == panel
    for fact in FACTS:
        assert np.array_equal(getattr(found, fact), getattr(everything, fact)[[7, 2, 5]])


def test_exactly_the_genes_whose_values_differ_vary(logs, cells_of_a_block):
    source = Asked(logs)
    varies = measure(source, None, source.runs.whole()).varies
    assert [gene for gene, one in zip(GENES, varies, strict=True) if not one] == ["G3", "G4"]


def test_one_value_that_differs_by_the_last_bit_varies():
    logs = np.full((5000, 2), 0.1, dtype=np.float32)
    logs[4321, 1] = np.nextafter(np.float32(0.1), np.float32(1))
    source = Asked(logs)
    assert list(measure(source, None, source.runs.whole()).varies) == [False, True]


def test_a_gene_that_only_a_later_block_lacks_is_0_at_its_lowest():
    logs = np.ones((5000, 1), dtype=np.float32)
    logs[4999] = 0
    source = Asked(logs)
    found = measure(source, None, source.runs.whole())
    assert (found.lowest[0], found.highest[0], found.varies[0]) == (0, 1, True)


def test_short_stretches_share_a_read_and_no_reader_holds_more_than_is_read_at_once():
    source = Asked(np.ones((30_000, 2), dtype=np.float32))
    pairs = Segments.of(source.runs, np.flatnonzero(np.arange(30_000) % 3 < 2))
    assert len(pairs) > 10_000
    measure(source, None, pairs)
    assert source.asked == source.held == [8192, 8192, 20_000 - 2 * 8192]


def test_no_cells_have_sums_of_0_and_nothing_is_read(logs):
    source = Asked(logs)
    found = measure(source, None, source.runs.whole(np.zeros(len(source.runs), dtype=bool)))
    assert (found.n_cells, source.asked) == (0, [])
    assert all((getattr(found, fact) == 0).all() for fact in FACTS)
    assert not found.varies.any()


def test_cells_that_express_nothing_count(logs):
    source = Asked(np.zeros((10, 3)))
    found = measure(source, None, source.runs.whole())
    assert found.n_cells == 10
    assert all((getattr(found, fact) == 0).all() for fact in FACTS)


def test_the_reads_are_tracked(logs, monkeypatch):
    monkeypatch.setattr(measuring, "_CELLS", 50)
    monkeypatch.setattr(measuring, "_BLOCKS", 2)
    seen = []

    def track(items):
        assert len(items) == 5
        for item in items:
            yield item
            seen.append(item)

    source = Asked(logs)
    measure(source, None, source.runs.whole(), track)
    assert len(seen) == 5


def test_a_table_on_disk_gives_the_moments_back_to_the_last_bit(logs, tmp_path):
    source = Asked(logs)
    found = measure(source, None, source.runs.whole())
    table = found.to_table()
    table["in:0"] = True
    table.to_parquet(tmp_path / "genes.parquet")
    back = Moments.from_table(pd.read_parquet(tmp_path / "genes.parquet"))
    assert same(found, back)
    assert all(getattr(back, fact).dtype == getattr(found, fact).dtype for fact in FACTS)


def test_a_table_without_moments_is_refused(logs):
    source = Asked(logs)
    table = measure(source, None, source.runs.whole()).to_table()
    with pytest.raises(ValueError, match=r"^the table of genes has no column 'logs', .*measure them again\.$"):
        Moments.from_table(table.drop(columns="logs"))
    with pytest.raises(ValueError, match=r"^the table of genes has no rows, .*measure them again\.$"):
        Moments.from_table(table.iloc[:0])


@pytest.mark.real
def test_the_moments_of_real_cells_are_those_of_their_expression(real_data):
    adata = read_anndata(real_data / "kang_ifnb_1kgenes.h5ad")
    cells = cells_from_anndata(adata, columns=KANG, expression=Expression(scale="counts"), control="control")
    controls = cells.runs.whole(cells.runs.is_control)
    found = measure(cells, None, controls)
    logs = cells.log_expression(list(cells.genes), np.flatnonzero(cells.is_control)).toarray()
    assert found.n_cells == len(logs) == 12_315
    assert list(found.genes) == list(cells.genes)
    np.testing.assert_allclose(found.logs, logs.sum(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.counts_squared, (np.expm1(logs.astype(np.float64)) ** 2).sum(axis=0), rtol=1e-12)
    assert np.array_equal(found.highest, logs.max(axis=0))


# what is trusted of a change


def test_genes_that_noise_may_explain_keep_the_share_that_all_of_them_prove_and_others_their_own(rng):
    n_genes = 50
    noise = rng.uniform(0.5, 2.0, size=n_genes)
    change = 1.2 * np.sqrt(noise) * np.sign(rng.normal(size=n_genes))
    border = np.sqrt(STANDS_OUT * np.log(n_genes) * noise)
    change[7], change[8] = 1.001 * border[7], -0.999 * border[8]
    found = trusted(change, noise)
    rest = np.delete(np.arange(n_genes), 7)
    np.testing.assert_allclose(found[rest], 1 - noise[rest].sum() / np.square(change[rest]).sum())
    assert found[7] == pytest.approx(1 - 1 / (STANDS_OUT * np.log(n_genes) * 1.001**2))
    capped = trusted(change, noise, 0.1)
    np.testing.assert_array_equal(capped[rest], 0.1)
    assert capped[7] == found[7]


def test_what_stands_out_says_nothing_of_other_genes(rng):
    noise, change = np.ones(100), 0.9 * np.sign(rng.normal(size=100))
    change[0] = 50.0  # a knocked-out gene, by itself far more than all noise
    found = trusted(change, noise)
    assert found[0] == pytest.approx(1 - 1 / 2500)
    assert not found[1:].any()


def test_rows_are_trusted_each_by_itself(rng):
    change, noise = rng.normal(size=(5, 40)) * 3, rng.uniform(size=(5, 40))
    np.testing.assert_allclose(trusted(change, noise), [trusted(*row) for row in zip(change, noise, strict=True)])


def test_without_noise_all_is_trusted_and_a_change_of_nothing_stays_nothing():
    np.testing.assert_array_equal(trusted(np.array([0.0, 1e-9, -3.0]), np.zeros(3))[1:], 1)
    for noise in (np.zeros(3), np.ones(3)):
        assert not (np.zeros(3) * trusted(np.zeros(3), noise)).any()


def test_noise_alone_seldom_stands_out_and_what_is_kept_of_it_is_small(rng):
    change = rng.normal(size=(400, 200))
    found = change * trusted(change, np.ones_like(change))
    assert (np.square(change) > STANDS_OUT * np.log(200)).any(axis=1).mean() < 0.05
    assert np.square(found).sum() < 0.02 * np.square(change).sum()


def test_a_few_strong_genes_and_many_weak_ones_are_both_predicted_better_than_by_one_share(rng):
    true = np.zeros((300, 100))
    true[:, :2] = 8.0
    change = true + rng.normal(size=true.shape)
    one = np.maximum(0, 1 - 100 / np.square(change).sum(axis=1, keepdims=True))
    errors = [np.square(b * change - true).mean() for b in (1.0, one, trusted(change, np.ones_like(change)))]
    assert errors[2] < 0.2 * errors[1] < 0.2 * errors[0]
