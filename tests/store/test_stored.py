import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perturbdiff.cells import totals
from perturbdiff.cells.anndata import read_cells
from perturbdiff.cells.measure import measure
from perturbdiff.cells.order import Segments
from perturbdiff.cells.totals import uncounted
from perturbdiff.core.choices import COVARIATES
from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.populations.epochs import Populations
from perturbdiff.recipes.dataset import recipe_from_mapping
from perturbdiff.recipes.selection import HoldOut
from perturbdiff.split.rules import PARTS, split_cells
from perturbdiff.store import parts, spill
from perturbdiff.store.build import build_store
from perturbdiff.store.layout import CHUNK, file_hash
from perturbdiff.store.stored import Store

COLUMNS = {"perturbation": "guide", "cell_type": "line", "assay_batch": "plate"}
SCALES = ("counts", "log1p")


def make(n_cells=400, n_genes=40, *, seed=0):
    """Cells of which some hold large counts, some a single one, and whose names are no order."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.4, 1.5, n_genes), (n_cells, n_genes)).astype(np.float32)
    counts[:, 3] = 0
    counts[rng.random(n_cells) < 0.1] = 0
    counts[:, 7] += 1
    counts[5, 2], counts[9, 4] = 70_000, 300
    obs = pd.DataFrame(
        {
            "guide": rng.choice(["ctrl", "A/b", "Ω", "z 1"], n_cells, p=[0.4, 0.3, 0.29, 0.01]),
            "line": rng.choice(["K562", "RPE1"], n_cells),
            "plate": rng.integers(1, 4, n_cells).astype(str),
        },
        index=[f"cell {i} ü" for i in range(n_cells)],
    )
    adata = anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{g}" for g in range(n_genes)]))
    logs = sp.csr_matrix(counts / counts.sum(1, keepdims=True) * 1e4)
    logs.data = np.log1p(logs.data)
    adata.layers["logs"] = logs.astype(np.float32)
    return adata


def recipe(scale="counts"):
    expression = {"scale": scale, **({"layer": "logs"} if scale == "log1p" else {})}
    mapping = {"name": "x", "control": "ctrl", "files": ["a.h5ad"], "columns": COLUMNS, "expression": expression}
    return recipe_from_mapping(mapping, "x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, by_hand):
    """For each scale the cells in memory, a store by hand and a prepared one; parts and readings of a few cells."""
    folder = tmp_path_factory.mktemp("stores")
    make().write_h5ad(folder / "a.h5ad")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "PART_VALUES", 8000)
        for scale in SCALES:
            by_hand(read_cells(recipe(scale), folder), recipe(scale), folder / f"{scale}.by_hand")
            build_store(recipe(scale), folder, folder / f"{scale}.prepared")
    return folder


@pytest.fixture(autouse=True)
def _small_readings(monkeypatch):
    monkeypatch.setattr(parts, "_CELLS", 16)
    monkeypatch.setattr(parts, "_VALUES", 300)
    monkeypatch.setattr(parts, "CHUNK", 40)


@pytest.fixture(params=[(scale, maker) for scale in SCALES for maker in ("by_hand", "prepared")], ids="-".join)
def both(request, folder):
    """Cells in memory, and a store of them."""
    scale, maker = request.param
    return read_cells(recipe(scale), folder), Store.open(folder / f"{scale}.{maker}")


@pytest.fixture
def own(folder, tmp_path):
    """A store to be damaged."""
    return shutil.copytree(folder / "counts.prepared", tmp_path / "own.store")


def bits(matrix):
    return matrix.toarray().view(np.uint32)


def assert_same_bits(found, wanted):
    assert found.dtype == wanted.dtype == np.float32
    np.testing.assert_array_equal(bits(found), bits(wanted))


def test_these_stores_have_parts_of_several_types_and_runs_that_straddle_them(folder):
    by_hand, prepared = (Store.open(folder / f"counts.{maker}") for maker in ("by_hand", "prepared"))
    assert not {part.start for part in by_hand.manifest.parts} <= set(by_hand.runs.offsets.tolist())
    types = {anndata.read_zarr(prepared.path / "parts" / part.name).X.dtype for part in prepared.manifest.parts}
    assert {np.dtype(np.uint8), np.dtype(np.uint32)} <= types


def test_it_says_of_its_cells_what_memory_says(both):
    cells, store = both
    assert (store.scale, store.control, store.n_cells) == (cells.scale, cells.control, cells.n_cells)
    assert store.notes == cells.notes
    assert store.genes.tolist() == cells.genes.tolist()
    pd.testing.assert_frame_equal(store.runs.labels, cells.runs.labels)
    np.testing.assert_array_equal(store.runs.offsets, cells.runs.offsets)
    np.testing.assert_array_equal(store.runs.is_control, cells.runs.is_control)
    for start, stop in [(0, store.n_cells), (0, 1), (17, 301), (399, 400), (5, 5)]:
        np.testing.assert_array_equal(store.hashes(start, stop), cells.hashes(start, stop))
        np.testing.assert_array_equal(store.profiles(start, stop)[1], cells.profiles(start, stop)[1])
    assert [store.name(p) for p in (0, 101, 399)] == [cells.name(p) for p in (0, 101, 399)]
    some = Segments.of(store.runs, np.array([3, 4, 200]))
    assert store.rows(some).tolist() == [3, 4, 200]
    assert store.recipe == recipe(store.scale)
    assert store.bytes_per_cell * store.n_cells >= 8 * store.n_values > 0
    assert store.moments("of another split") is None
    assert sum(one.n_cells for one in store.files) == store.n_cells
    assert repr(store) == f"Store({str(store.path)!r}, 400 cells x 40 genes, {store.scale})"


def test_a_prepared_store_has_the_digests_and_profiles_of_memory(folder):
    cells, store = read_cells(recipe(), folder), Store.open(folder / "counts.prepared")
    np.testing.assert_array_equal(store.digests, cells.digests)
    np.testing.assert_array_equal(store.profiles(0, 400)[0], cells.profiles(0, 400)[0])


def test_of_groups_that_train_the_same_cells_of_a_store_and_of_memory_are_held_back(both):
    rules = [HoldOut(part="test", perturbation=("z 1",)), HoldOut(part="test", perturbation=("A/b",), keep_cells=12)]
    first, second = (split_cells(source, rules, seed=0) for source in both)
    assert 0 < first.held_back().n_cells == first.of("validation").n_cells
    assert set(first.groups("validation")["perturbation"]) == {"A/b", "Ω"}
    assert first.notes == second.notes
    for part in PARTS:
        np.testing.assert_array_equal(first.of(part).positions(), second.of(part).positions())


def test_a_prepared_store_has_the_moments_of_the_training_cells_of_its_recipe(folder):
    cells, store = read_cells(recipe(), folder), Store.open(folder / "counts.prepared")
    split = split_cells(cells, (), seed=0)
    found, wanted = store.moments(store.manifest.moments), measure(cells, None, split.of("train"))
    assert store.manifest.moments == split.hash
    pd.testing.assert_frame_equal(found.to_table(), wanted.to_table(), check_exact=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_panel_of_any_cells_is_bit_by_bit_that_of_memory(both, data):
    cells, store = both
    share = data.draw(st.sampled_from([0.004, 0.05, 0.5, 0.97, 1.0]))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    positions = np.flatnonzero(rng.random(400) < share)
    genes = [f"G{g}" for g in rng.permutation(40)[: data.draw(st.integers(1, 40))]]
    if data.draw(st.booleans()):
        genes.sort(key=lambda gene: int(gene[1:]))
    loaded = store.reader(genes, store.runs.whole()).load(positions)
    np.testing.assert_array_equal(loaded.positions, positions)
    assert_same_bits(loaded.matrix, cells.log_expression(genes, cells.order[positions]))
    # ascending genes, without scipy's word for it
    matrix = sp.csr_matrix((loaded.matrix.data, loaded.matrix.indices, loaded.matrix.indptr), loaded.matrix.shape)
    assert matrix.has_canonical_format


def test_all_genes_and_cells_are_bit_by_bit_those_of_memory(both):
    cells, store = both
    loaded = store.reader(list(store.genes), store.runs.whole()).load(np.arange(400))
    assert_same_bits(loaded.matrix, cells.log_expression(list(cells.genes), cells.order))
    assert loaded.matrix.has_canonical_format


def test_readings_of_the_usual_size_are_those_of_memory(folder, monkeypatch):
    monkeypatch.undo()
    cells, store = read_cells(recipe(), folder), Store.open(folder / "counts.prepared")
    loaded = store.reader(["G9", "G1"], store.runs.whole()).load(np.arange(3, 390))
    assert_same_bits(loaded.matrix, cells.log_expression(["G9", "G1"], cells.order[3:390]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.sampled_from([0.004, 0.05, 0.5, 1.0]), seed=st.integers(0, 2**32 - 1))
def test_totals_are_those_of_memory_and_over_all_genes_whatever_the_panel(both, share, seed):
    cells, store = both
    rng = np.random.default_rng(seed)
    positions = np.flatnonzero(rng.random(400) < share)
    genes = [f"G{g}" for g in rng.permutation(40)[: rng.integers(1, 41)]]
    found, wanted = (
        source.reader(genes, Segments.of(source.runs, positions), scale=2.0).load(positions)
        for source in (store, cells)
    )
    assert found.totals.dtype == wanted.totals.dtype == np.float64
    np.testing.assert_array_equal(found.totals, wanted.totals)
    np.testing.assert_array_equal(found.totals, cells.known_totals[cells.order[positions]])


def test_totals_recovered_from_logarithms_are_those_of_the_counts(folder):
    cells, store = read_cells(recipe(), folder), Store.open(folder / "log1p.prepared")
    found = store.reader(["G3"], store.runs.whole()).load(np.arange(400)).totals
    # every cell has a gene with one count
    np.testing.assert_array_equal(found, cells.total_counts[cells.order])


def test_cells_of_unknown_total_are_the_same_in_memory_and_in_a_store_and_are_counted(tmp_path, folder, by_hand):
    cells = read_cells(recipe("log1p"), folder)
    smooth = sp.csr_matrix(cells.values)
    for row in range(0, 400, 7):
        smooth.data[smooth.indptr[row] : smooth.indptr[row + 1]] += np.float32(0.1)
    cells = replace(cells, values=smooth)
    store = Store.open(by_hand(cells, recipe("log1p"), tmp_path / "s"))
    positions = np.arange(3, 390, 2)
    found = store.reader(["G9"], store.runs.whole()).load(positions).totals
    np.testing.assert_array_equal(found, cells.known_totals[cells.order[positions]])
    n_unknown = int(np.isnan(cells.known_totals[cells.is_control]).sum())
    assert 10 < n_unknown < cells.is_control.sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(totals, "_CELLS", 50)
        assert uncounted(store, store.runs.whole()) == uncounted(cells, cells.runs.whole()) == n_unknown


def test_log1p_does_not_depend_on_where_in_a_reading_a_value_stands(tmp_path, by_hand):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4000, (300, 97)) * (rng.random((300, 97)) < 0.5)
    counts[:, 0] = 1
    obs = pd.DataFrame({"guide": "ctrl", "line": "l", "plate": "p"}, index=[f"c{i}" for i in range(300)])
    anndata.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs).write_h5ad(tmp_path / "a.h5ad")
    cells = read_cells(recipe(), tmp_path)
    store = Store.open(by_hand(cells, recipe(), tmp_path / "s", n_parts=7))
    reader = store.reader(list(store.genes), store.runs.whole())
    whole = cells.log_expression(list(cells.genes))[cells.order]
    for start in range(0, 300, 7):
        positions = np.arange(start, min(300, start + 1 + start % 13))
        assert_same_bits(reader.load(positions).matrix, whole[positions])


def test_near_cells_are_read_as_one_range_and_far_ones_are_not_read_between(folder):
    store = Store.open(folder / "counts.by_hand")
    positions = np.array([3, 4, 8, 9, 30, 31, *range(95, 140)])
    found = replace(store.parts, gap=4).ranges(positions)
    # parts of 100 cells; ranges of at most 16
    assert list(zip(*(one.tolist() for one in found[:3]), strict=True)) == [
        (0, 3, 10),
        (0, 30, 32),
        (0, 95, 100),
        (1, 0, 16),
        (1, 16, 32),
        (1, 32, 40),
    ]
    assert found.asked.tolist() == [True] * 2 + [False] * 3 + [True] * 49


def test_ranges_near_enough_to_share_a_chunk_count_as_near(folder, monkeypatch):
    monkeypatch.undo()
    parts_of = Store.open(folder / "counts.by_hand")
    assert parts_of.parts.gap == CHUNK * parts_of.n_cells // parts_of.n_values


def test_no_cells_are_read_as_no_cells(both):
    _, store = both
    loaded = store.reader(["G3", "G7"], store.runs.whole()).load(np.zeros(0, dtype=np.int64))
    assert loaded.matrix.shape == (0, 2)
    assert store.reader(["G3"], store.runs.whole()).load(np.arange(400)).matrix.nnz == 0


def test_the_rows_of_a_reading_are_found_by_their_positions(both):
    cells, store = both
    loaded = store.reader(["G7", "G1"], store.runs.whole()).load(np.array([5, 6, 70, 399]))
    wanted = np.array([399, 5, 5, 70])
    assert_same_bits(loaded.rows(wanted), cells.log_expression(["G7", "G1"], cells.order[wanted]))


@pytest.mark.parametrize("held", [0, 1 << 30])
def test_populations_of_a_store_are_those_of_memory(both, held):
    cells, store = both
    vocabularies = {name: Vocabulary.from_labels(name, cells.labels[name]) for name in COVARIATES}
    genes = [f"G{g}" for g in (7, 1, 12, 30)]
    first, second = (
        Populations(
            source,
            source.runs.whole(),
            genes,
            2.0,
            vocabularies,
            cells_per_population=8,
            control_share=0.2,
            seed=3,
            held=held,
        )
        for source in (cells, store)
    )
    assert len(first) == len(second)
    for epoch in range(2):
        for a, b in zip(first.plan(epoch), second.plan(epoch), strict=True):
            np.testing.assert_array_equal(a.rows, b.rows)
            np.testing.assert_array_equal(a.control_rows, b.control_rows)
            assert (a.key, a.condition) == (b.key, b.condition)
    ours, theirs = first.batch(first.plan(0)[:9]), second.batch(second.plan(0)[:9])
    np.testing.assert_array_equal(ours.perturbed, theirs.perturbed)
    np.testing.assert_array_equal(ours.control, theirs.control)
    assert (ours.totals is None) == (theirs.totals is None)
    if ours.totals is not None:
        np.testing.assert_array_equal(ours.totals, theirs.totals)


def test_cells_in_memory_are_those_of_the_files_in_the_order_of_the_store(both):
    cells, store = both
    positions = np.flatnonzero(np.random.default_rng(1).random(400) < 0.6)
    found = store.in_memory(Segments.of(store.runs, positions))
    wanted = cells.take(cells.order[positions])
    assert found.names.tolist() == wanted.names.tolist()
    assert found.genes.tolist() == wanted.genes.tolist()
    assert found.labels.astype(str).equals(wanted.labels.astype(str))
    for name in COVARIATES:
        assert found.labels[name].cat.categories.tolist() == wanted.labels[name].cat.categories.tolist()
    values = found.values  # noqa: PD011
    np.testing.assert_array_equal(values.toarray(), wanted.values.toarray())  # noqa: PD011
    assert values.has_canonical_format
    assert (found.scale, found.control, found.notes) == (wanted.scale, wanted.control, wanted.notes)
    if wanted.total_counts is None:
        assert found.total_counts is None
        assert values.dtype == np.float32
    else:
        np.testing.assert_array_equal(found.total_counts, wanted.total_counts)
        assert values.dtype.kind == "u"
    np.testing.assert_array_equal(found.log_expression(["G1"]).toarray(), wanted.log_expression(["G1"]).toarray())


def test_too_many_cells_are_thinned_evenly_as_in_memory_and_a_note_says_so(both):
    cells, store = both
    found, wanted = (source.in_memory(source.runs.whole(), at_most=50) for source in (store, cells))
    assert sorted(found.names) == sorted(wanted.names)
    assert found.notes == wanted.notes
    assert "of 400 cells are read" in found.notes[-1]
    assert found.n_cells <= 50 + len(store.runs)


def test_labels_that_no_cell_has_any_more_are_forgotten(both):
    _, store = both
    found = store.in_memory(store.runs.whole(store.runs.is_control))
    assert found.labels["perturbation"].cat.categories.tolist() == ["ctrl"]


def test_no_segments_are_no_cells(both):
    _, store = both
    nothing = store.runs.whole(np.zeros(len(store.runs), dtype=bool))
    assert store.in_memory(nothing).log_expression(["G1", "G2"]).shape == (0, 2)


def test_several_threads_read_at_once_what_one_reads(folder):
    store = Store.open(folder / "counts.prepared")
    cells = read_cells(recipe(), folder)
    genes = ["G30", "G1", "G7"]
    wanted = cells.log_expression(genes, cells.order)
    reader = store.reader(genes, store.runs.whole())
    rng = np.random.default_rng(0)
    requests = [np.flatnonzero(rng.random(400) < 0.5) for _ in range(24)]
    together = threading.Barrier(4)

    def load(positions):
        together.wait()
        return reader.load(positions).matrix

    with ThreadPoolExecutor(4) as pool:
        for positions, found in zip(requests, pool.map(load, requests), strict=True):
            assert_same_bits(found, wanted[positions])


def test_opening_a_store_reads_its_tables_only(own):
    for part in (own / "parts").iterdir():
        shutil.rmtree(part)
        part.mkdir()
    store = Store.open(own)
    assert store.runs.n_cells == 400
    store.reader(["G1"], store.runs.whole())


def test_an_unknown_gene_is_refused_and_the_nearest_is_named(both):
    _, store = both
    sentence = "1 of 2 genes are not in the data, such as 'g1x'; the nearest is 'G1', or align the panel"
    with pytest.raises(ValueError, match=sentence):
        store.reader(["G2", "g1x"], store.runs.whole())


def test_what_is_no_store_is_refused(own, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no store"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no manifest.json, so it is not a store"):
        Store.open(own / "parts")
    manifest = json.loads((own / "manifest.json").read_text())
    (own / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ValueError, match="is a store of format 99"):
        Store.open(own)
    (own / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest.json' is damaged"):
        Store.open(own)


@pytest.mark.parametrize("name", ["runs.parquet", "genes.parquet"])
@pytest.mark.parametrize("how", ["absent", "cut", "changed"])
def test_a_damaged_table_is_refused(own, name, how):
    content = (own / name).read_bytes()
    (own / name).unlink()
    if how != "absent":
        (own / name).write_bytes(content[:-9] if how == "cut" else content[:99] + b"x" + content[100:])
    with pytest.raises(ValueError, match=rf"{name}' is missing or is not what was written"):
        Store.open(own)


def test_a_missing_part_is_refused_at_once(own):
    shutil.rmtree(own / "parts" / "00001.zarr")
    with pytest.raises(ValueError, match=r"lacks 1 of \d+ parts, such as '00001.zarr'; copy the store again"):
        Store.open(own)


@pytest.mark.parametrize("name", ["X/data", "X/indices", "X/indptr", "obs/total_counts"])
@pytest.mark.parametrize("how", ["file absent", "array absent", "array of another part", "file cut"])
def test_reading_a_damaged_part_is_refused_and_names_it(own, name, how):
    array = own / "parts" / "00001.zarr" / name
    if how == "array absent":
        shutil.rmtree(array)
    elif how == "array of another part":
        shutil.rmtree(array)
        shutil.copytree(own / "parts" / "00000.zarr" / name, array)
    elif how == "file absent":
        (array / "c" / "0").unlink()
    else:
        chunk = array / "c" / "0"
        chunk.write_bytes(chunk.read_bytes()[:-30])
    store = Store.open(own)
    reader = store.reader(["G1"], store.runs.whole())
    edges = [part.start for part in store.manifest.parts]
    reader.load(np.arange(edges[1]))
    with pytest.raises(
        ValueError, match=rf"array '{name}' of part '00001.zarr' in .* cannot be read \(.*\); copy"
    ) as e:
        reader.load(np.arange(400))
    assert str(e.value).count("\n") == 0


def test_a_part_without_names_is_refused_when_they_are_asked_for(own):
    shutil.rmtree(own / "parts" / "00000.zarr" / "obs" / "_index")
    with pytest.raises(ValueError, match=r"array 'obs/_index' of part '00000.zarr'"):
        Store.open(own).name(0)


def test_a_whole_store_is_verified(both):
    _, store = both
    seen = []
    store.verify(lambda some: (seen.append(one.name) or one for one in some))
    assert seen == [part.name for part in store.manifest.parts]


@pytest.mark.parametrize("name", ["X/data", "X/indices", "X/indptr", "obs/total_counts", "obs/_index", "obs/file"])
def test_verifying_names_a_part_that_holds_other_values(own, name):
    import zarr

    array = zarr.open_array(own / "parts" / "00001.zarr" / name)
    array[3] = "other" if name == "obs/_index" else array[3] + 1
    store = Store.open(own)
    with pytest.raises(ValueError, match=r"1 of \d+ parts of .* are not what was written, such as '00001.zarr'; copy"):
        store.verify()


def test_verifying_names_all_that_cannot_be_read(own):
    shutil.rmtree(own / "parts" / "00000.zarr" / "X")
    (own / "parts" / "00001.zarr" / "obs" / "name_hash" / "c" / "0").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of \d+ parts of .* such as '00000.zarr'"):
        Store.open(own).verify()


def test_reading_writes_nothing(own):
    before = {path: file_hash(path) for path in own.rglob("*") if path.is_file()}
    store = Store.open(own)
    store.reader(["G1"], store.runs.whole()).load(np.arange(400))
    store.verify()
    assert before == {path: file_hash(path) for path in own.rglob("*") if path.is_file()}
