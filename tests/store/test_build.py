import json
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.cells.anndata import cells_from_anndata, read_cells
from perturbdiff.cells.order import digested, name_hashes
from perturbdiff.recipes.dataset import recipe_from_mapping
from perturbdiff.store import build, spill
from perturbdiff.store.build import build_store
from perturbdiff.store.layout import OBS, content_hash, file_hash
from perturbdiff.store.manifest import check_tables, read_manifest
from perturbdiff.store.plan import plan_store

COLUMNS = {"perturbation": "guide", "cell_type": "line", "assay_batch": "plate"}


def made(n_cells=60, n_genes=12, *, seed=0, first=0, matrix=sp.csr_matrix, genes=None):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.8, (n_cells, n_genes)).astype(np.float32)
    counts[:, 0] += 1
    counts[0, 1] = 300 + seed
    obs = pd.DataFrame(
        {
            "guide": pd.Categorical(rng.choice(["ctrl", "A/b", "../C", "Ω"], n_cells)),
            "line": rng.choice(["K562", "RPE1"], n_cells),
            "plate": rng.integers(1, 4, n_cells),
            "umi": counts.sum(1) * 2.0,
        },
        index=[f"cell{first + i}" for i in range(n_cells)],
    )
    genes = [f"G{g}" for g in range(n_genes)] if genes is None else genes
    return anndata.AnnData(matrix(counts), obs=obs, var=pd.DataFrame(index=genes))


def recipe(*files, scale="counts", layer=None, columns=COLUMNS, control="ctrl", **more):
    expression = {"scale": scale} if layer is None else {"scale": scale, "layer": layer}
    mapping = {"name": "x", "control": control, "files": list(files), "columns": columns, "expression": expression}
    return recipe_from_mapping({**mapping, **more}, "x")


def prepared(folder, chosen, name="x.store", **more):
    build_store(chosen, folder, folder / name, **more)
    return folder / name


def parts_of(store):
    return [anndata.read_zarr(store / "parts" / part.name) for part in read_manifest(store).parts]


def whole(store):
    parts = parts_of(store)
    obs = pd.concat([part.obs for part in parts])
    return sp.vstack([sp.csr_matrix(part.X) for part in parts], format="csr"), obs


def tree(store):
    return {str(path.relative_to(store)): file_hash(path) for path in store.rglob("*") if path.is_file()}


@pytest.fixture
def small(monkeypatch):
    """Parts of a few cells."""
    monkeypatch.setattr(spill, "PART_VALUES", 1500)


def assert_same(store, cells):
    """The store holds these cells, in the canonical order, to the last bit."""
    manifest = read_manifest(store)
    matrix, obs = whole(store)
    order = cells.order
    assert manifest.n_cells == cells.n_cells
    assert manifest.notes == cells.notes
    assert obs.index.tolist() == cells.names[order].tolist()
    np.testing.assert_array_equal(obs["name_hash"], name_hashes(cells.names)[order])
    profiles, expressed = cells.profiles(0, cells.n_cells)
    np.testing.assert_array_equal(obs["profile_hash"], profiles)
    np.testing.assert_array_equal(obs["expressed"], expressed)
    runs = pd.read_parquet(store / "runs.parquet")
    assert runs["start"].tolist() == cells.runs.offsets[:-1].tolist()
    assert runs["cells"].tolist() == cells.runs.sizes.tolist()
    for key in ("perturbation", "cell_type", "assay_batch"):
        assert runs[key].tolist() == cells.runs.labels[key].tolist()
        assert runs[key].cat.categories.tolist() == sorted(runs[key].cat.categories)
    words = digested(name_hashes(cells.names)[order], cells.runs.offsets)
    np.testing.assert_array_equal(runs[["digest_0", "digest_1"]].to_numpy(), words)
    assert pd.read_parquet(store / "genes.parquet")["name"].tolist() == list(cells.genes)
    given = sp.csr_matrix(cells.values).astype(np.float32)[order]
    assert (matrix.astype(np.float32) != given).nnz == 0
    if cells.total_counts is not None:
        np.testing.assert_array_equal(obs["total_counts"], cells.total_counts[order])


@pytest.mark.parametrize("matrix", [sp.csr_matrix, sp.csc_matrix, np.asarray, lambda x: x.astype(np.int64)])
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_a_store_holds_the_cells_that_memory_holds_whatever_their_storage(tmp_path, small, matrix, kind):
    adata = made(matrix=matrix)
    getattr(adata, f"write_{kind}")(tmp_path / f"a.{kind}")
    store = prepared(tmp_path, recipe(f"a.{kind}"))
    chosen = recipe(f"a.{kind}")
    cells = cells_from_anndata(adata, columns=chosen.columns, expression=chosen.expression, control="ctrl")
    assert len(read_manifest(store).parts) > 2
    assert_same(store, cells)


def test_several_files_make_one_store_in_the_canonical_order(tmp_path, small):
    for i in range(3):
        made(40, seed=i, first=40 * i).write_h5ad(tmp_path / f"{i}.h5ad")
    store = prepared(tmp_path, recipe("*.h5ad"))
    assert_same(store, read_cells(recipe("*.h5ad"), tmp_path))
    _, obs = whole(store)
    assert np.bincount(obs["file"]).tolist() == [40, 40, 40]
    assert [(one.name, one.n_cells, one.n_genes) for one in read_manifest(store).files] == [
        (f"{i}.h5ad", 40, 12) for i in range(3)
    ]


def test_log1p_values_declared_totals_layers_and_obsm_are_as_in_memory(tmp_path, small):
    adata = made()
    adata.layers["log"] = sp.csr_matrix(np.log1p(adata.X.toarray() / 3).astype(np.float64))
    adata.obsm["some"] = pd.DataFrame(adata.X.toarray()[:, :3], index=adata.obs_names, columns=["x", "y", "z"])
    adata.write_h5ad(tmp_path / "a.h5ad")
    declared = {**COLUMNS, "total_counts": "umi"}
    for i, chosen in enumerate(
        [
            recipe("a.h5ad", scale="log1p", layer="log"),
            recipe("a.h5ad", columns=declared),
            recipe("a.h5ad", layer="obsm:some", columns=declared),
            recipe("a.h5ad", columns={}, control=None, kind="rna-seq"),
        ]
    ):
        store = prepared(tmp_path, chosen, f"{i}.store")
        assert_same(store, read_cells(chosen, tmp_path))
    part = parts_of(tmp_path / "0.store")[0]
    assert part.X.dtype == np.float32
    assert "total_counts" not in part.obs


def test_a_part_reads_with_anndata_and_its_hash_is_of_what_it_holds(tmp_path, small):
    made().write_h5ad(tmp_path / "a.h5ad")
    store = prepared(tmp_path, recipe("a.h5ad"))
    manifest = read_manifest(store)
    check_tables(manifest, store)
    types = set()
    stop = 0
    for part, entry in zip(parts_of(store), manifest.parts, strict=True):
        types.add(part.X.dtype)
        assert part.X.dtype == np.min_scalar_type(int(part.X.data.max()))
        assert part.var_names.tolist() == [f"G{g}" for g in range(12)]
        assert (entry.start, entry.stop, entry.n_values) == (stop, stop + part.n_obs, part.X.nnz)
        stop = entry.stop
        x = part.X
        names = part.obs_names.to_numpy(dtype=object)
        columns = [part.obs[key].to_numpy() for key in OBS]
        assert entry.hash == content_hash([x.data, x.indices, x.indptr.astype(np.int64), names, *columns])
        assert (x.data > 0).all()
        assert x.has_canonical_format
    assert types == {np.dtype(np.uint8), np.dtype(np.uint16)}
    (store / "genes.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"genes.parquet' is missing or is not what was written; make the store again"):
        check_tables(manifest, store)


def test_chunks_and_memory_do_not_change_a_byte_of_the_store(tmp_path, small, monkeypatch):
    for i in range(2):
        made(50, seed=i, first=50 * i).write_h5ad(tmp_path / f"{i}.h5ad")
    one = prepared(tmp_path, recipe("*.h5ad"), "one.store")
    monkeypatch.setattr(build, "_CHUNKS", 1 << 20)
    two = prepared(tmp_path, recipe("*.h5ad"), "two.store", memory=3 << 30)
    monkeypatch.setattr(build, "_CELLS", 7)
    three = prepared(tmp_path, recipe("*.h5ad"), "three.store", memory=1 << 30)
    assert tree(one) == tree(two) == tree(three)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_bucket_heavier_than_was_thought_makes_several_parts(tmp_path, small, monkeypatch):
    made().write_h5ad(tmp_path / "a.h5ad")
    expected = read_cells(recipe("a.h5ad"), tmp_path)
    monkeypatch.setattr(spill, "PART_VALUES", 1000)
    monkeypatch.setattr(build, "buckets_of", lambda joined: spill.Buckets(0 * joined.cells, 0 * joined.cells + 1))
    stores = []
    for name, cells in (("one.store", 1 << 18), ("two.store", 9)):
        monkeypatch.setattr(build, "_CELLS", cells)
        stores.append(prepared(tmp_path, recipe("a.h5ad"), name))
        assert len(read_manifest(stores[-1]).parts) > 3
        assert_same(stores[-1], expected)
    assert tree(stores[0]) == tree(stores[1])


def test_excluded_cells_are_left_out_and_a_sentence_says_so(tmp_path, small):
    made().write_h5ad(tmp_path / "a.h5ad")
    chosen = recipe("a.h5ad", exclude=[{"perturbation": ["A/b"], "assay_batch": ["2"]}, {"perturbation": ["Ω"]}])
    store = prepared(tmp_path, chosen)
    cells = read_cells(chosen, tmp_path)
    assert_same(store, cells)
    assert read_manifest(store).notes == cells.notes
    assert "Ω" not in pd.read_parquet(store / "runs.parquet")["perturbation"].cat.categories
    with pytest.raises(ValueError, match=r"exclude\[0\] names perturbation 'a', which no cell has; the nearest is"):
        prepared(tmp_path, recipe("a.h5ad", exclude=[{"perturbation": ["a"]}]), "y.store")


def test_genes_are_joined_as_the_recipe_says(tmp_path, small):
    made(30, 4, genes=["a", "b", "c", "d"]).write_h5ad(tmp_path / "0.h5ad")
    made(30, 4, seed=1, first=30, genes=["e", "c", "b", "a"]).write_h5ad(tmp_path / "1.h5ad")
    with pytest.raises(ValueError, match="files of one recipe must have the same genes"):
        prepared(tmp_path, recipe("*.h5ad"))
    union = prepared(tmp_path, recipe("*.h5ad", join="union"), "union.store")
    genes = pd.read_parquet(union / "genes.parquet")
    assert genes["name"].tolist() == ["a", "b", "c", "d", "e"]
    assert genes["in:0"].tolist() == [True, True, True, True, False]
    assert genes["in:1"].tolist() == [True, True, True, False, True]
    shared = prepared(tmp_path, recipe("*.h5ad", join="intersection"), "shared.store")
    assert pd.read_parquet(shared / "genes.parquet")["name"].tolist() == ["a", "b", "c"]
    for store, join in ((union, "union"), (shared, "intersection")):
        assert_same(store, read_cells(recipe("*.h5ad", join=join), tmp_path))


def test_a_gene_table_renames_and_the_identifier_is_kept(tmp_path):
    made(30, 3, genes=["ENSG1", "ENSG2", "ENSG3"]).write_h5ad(tmp_path / "0.h5ad")
    (tmp_path / "genes.csv").write_text("identifier,name\nENSG1,TP53\nENSG2,IFNB1\n")
    chosen = recipe("0.h5ad")
    chosen = chosen.model_copy(update={"expression": chosen.expression.model_copy(update={"gene_table": "genes.csv"})})
    store = prepared(tmp_path, chosen)
    genes = pd.read_parquet(store / "genes.parquet")
    assert genes["name"].tolist() == ["TP53", "IFNB1", "ENSG3"]
    assert genes["identifier"].tolist() == ["ENSG1", "ENSG2", "ENSG3"]
    assert any("genes.csv" in note for note in read_manifest(store).notes)


def test_cells_named_alike_in_two_files_are_refused_unless_names_carry_their_file(tmp_path, small, monkeypatch):
    for i in range(3):
        made(30, seed=i, first=29 * i).write_h5ad(tmp_path / f"plate{i}.h5ad")
    sentence = (
        r"2 cell names occur in several files, such as 'cell(29|58)' in 'plate\d.h5ad' and 'plate\d.h5ad', and a name "
        r'must tell a cell apart; write cell_names = "with_file"'
    )
    with pytest.raises(ValueError, match=sentence):
        prepared(tmp_path, recipe("*.h5ad"))
    assert not (tmp_path / ".x.store.partial").exists()
    store = prepared(tmp_path, recipe("*.h5ad", cell_names="with_file"))
    assert_same(store, read_cells(recipe("*.h5ad", cell_names="with_file"), tmp_path))


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_names_repeated_within_a_file_are_allowed_and_keep_their_order(tmp_path, small, monkeypatch):
    adata = made(30)
    adata.obs["guide"] = pd.Categorical(["ctrl"] * 30)
    adata.obs["line"] = "K562"
    adata.obs["plate"] = 1
    adata.obs_names = ["same"] * 20 + [f"c{i}" for i in range(10)]
    adata.write_h5ad(tmp_path / "a.h5ad")
    monkeypatch.setattr(build, "_CELLS", 4)
    store = prepared(tmp_path, recipe("a.h5ad"))
    matrix, obs = whole(store)
    same = np.flatnonzero(obs.index == "same")
    np.testing.assert_array_equal(matrix[same].toarray(), adata.X.toarray()[:20])


def test_a_plan_writes_nothing_and_tells_what_a_store_holds(tmp_path):
    for i in range(2):
        made(40, seed=i, first=40 * i).write_h5ad(tmp_path / f"{i}.h5ad")
    before = sorted(tmp_path.iterdir())
    plan = plan_store(recipe("*.h5ad"), tmp_path, tmp_path / "deep" / "x.store")
    assert sorted(tmp_path.iterdir()) == before
    assert (plan.n_files, plan.n_cells, plan.n_genes, plan.file_genes) == (2, 80, 12, (12, 12))
    assert plan.n_labels == {"perturbation": 4, "cell_type": 2, "assay_batch": 3}
    assert min(plan.store_bytes, plan.temporary_bytes, plan.free_bytes, plan.minutes) > 0
    store = prepared(tmp_path, recipe("*.h5ad"))
    assert plan.n_runs == len(pd.read_parquet(store / "runs.parquet"))


def test_too_little_memory_is_refused(tmp_path):
    made().write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"0.50 GiB of memory is too little to make a store, which takes 1 GiB; allow"):
        prepared(tmp_path, recipe("a.h5ad"), memory=1 << 29)


def test_a_store_is_replaced_only_when_asked_and_nothing_else_ever(tmp_path):
    made().write_h5ad(tmp_path / "a.h5ad")
    store = prepared(tmp_path, recipe("a.h5ad"))
    before = tree(store)
    made(seed=1).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match="exists already; choose another name, or give --overwrite"):
        prepared(tmp_path, recipe("a.h5ad"))
    assert tree(store) == before
    prepared(tmp_path, recipe("a.h5ad"), overwrite=True)
    assert tree(store) != before
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(ValueError, match="exists and is not a store, so it is not overwritten"):
        prepared(tmp_path, recipe("a.h5ad"), "mine", overwrite=True)


def test_a_store_is_not_made_of_a_store(tmp_path):
    made().write_h5ad(tmp_path / "a.h5ad")
    prepared(tmp_path, recipe("a.h5ad"))
    with pytest.raises(ValueError, match=r"x.store' is a store already"):
        prepared(tmp_path, recipe("x.store"), "y.store")


def test_a_manifest_says_what_is_wrong_with_it(tmp_path):
    made().write_h5ad(tmp_path / "a.h5ad")
    store = prepared(tmp_path, recipe("a.h5ad"))
    assert read_manifest(store).read_recipe() == recipe("a.h5ad")
    path = store / "manifest.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "format": 99}))
    with pytest.raises(ValueError, match=r"is a store of format 99, .*reads up to 1"):
        read_manifest(store)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=r"manifest.json' is damaged"):
        read_manifest(store)
    path.unlink()
    with pytest.raises(ValueError, match=r"has no manifest.json, so it is not a store"):
        read_manifest(store)
    shutil.rmtree(store)
    with pytest.raises(FileNotFoundError, match="there is no store"):
        read_manifest(store)


@pytest.mark.real
def test_real_files_make_the_store_of_what_memory_holds(real_data, tmp_path):
    path = real_data / "kang_ifnb_1kgenes.h5ad"
    labels = {"perturbation": "perturbation", "cell_type": "cell_type", "assay_batch": "batch"}
    chosen = recipe(str(path), columns=labels, control="control")
    store = prepared(tmp_path, chosen)
    assert_same(store, read_cells(chosen, tmp_path))
