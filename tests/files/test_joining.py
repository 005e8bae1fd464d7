import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from perturbdiff.cells.anndata import read_cells
from perturbdiff.files.joining import (
    aligned,
    below,
    file_suffixes,
    join_genes,
    join_names,
    join_note,
    read_gene_table,
)
from perturbdiff.recipes.dataset import recipe_from_mapping

A = pd.Index(["G1", "G2", "G3"], dtype=str)
B = pd.Index(["G3", "G9", "G1"], dtype=str)
FILES = ("a.h5ad", "b.h5ad")


def test_the_same_genes_in_another_order_take_the_first_files_order():
    assert join_genes([A, A[::-1]], FILES, "same").tolist() == ["G1", "G2", "G3"]
    assert join_note([A, A[::-1]], FILES, A) is None


def test_the_intersection_keeps_the_first_files_order_and_says_what_is_left_out():
    joined = join_genes([A[::-1], B], FILES, "intersection")
    assert joined.tolist() == ["G3", "G1"]
    assert join_note([A[::-1], B], FILES, joined) == "2 of 4 genes are in all 2 files; the others are left out."


def test_the_union_appends_new_genes_in_order_of_appearance_and_says_that_absent_is_not_zero():
    joined = join_genes([A, B], FILES, "union")
    assert joined.tolist() == ["G1", "G2", "G3", "G9"]
    assert join_note([A, B], FILES, joined) == (
        "2 of 4 genes are absent from some of the 2 files (1 from 'a.h5ad'): they were not measured there, and hold no "
        "counts, which is not a measured zero."
    )


def test_other_genes_are_refused_where_the_recipe_says_nothing_with_the_remedy():
    sentence = (
        "'b.h5ad' has 3 genes and 'a.h5ad' 3, of which they share 2, and files of one recipe must have the same genes; "
        'write join = "intersection" or join = "union".'
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        join_genes([A, B], FILES, "same")


def test_an_empty_intersection_is_refused():
    with pytest.raises(
        ValueError, match='no gene is in all 2 files, and join = "intersection" keeps those only; write'
    ):
        join_genes([A, A + "x"], FILES, "intersection")


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csr_array, np.asarray])
@pytest.mark.parametrize("rule", ["intersection", "union"])
def test_every_value_stands_under_its_gene_and_absent_genes_hold_nothing(rng, kind, rule):
    counts = rng.poisson(1.0, (7, 3)).astype(np.float32)
    joined = join_genes([A, B], FILES, rule)
    values = kind(counts.copy())
    found = aligned(values, B, joined)
    expected = pd.DataFrame(counts, columns=B).reindex(columns=joined, fill_value=0).to_numpy()
    np.testing.assert_array_equal(np.asarray(found.todense()) if sp.issparse(found) else found, expected)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(values.toarray() if sp.issparse(values) else values, counts)
    assert not sp.issparse(found) or found.has_canonical_format


def test_a_matrix_whose_genes_are_right_is_not_copied(rng):
    values = sp.csr_matrix(rng.poisson(1.0, (7, 3)))
    assert aligned(values, A, A) is values
    assert below([values]) is values
    assert np.shares_memory(aligned(values, A, A.append(B[1:2])).data, values.data)


@given(st.lists(st.sampled_from(["a", "a-0", "a-1", "b", "a-0-1"]), min_size=1, max_size=8))
def test_suffixes_of_files_are_unique_whatever_the_stems(stems):
    suffixes = file_suffixes([Path(f"folder{i}") / f"{stem}.h5ad" for i, stem in enumerate(stems)])
    assert len(set(suffixes)) == len(stems)
    assert all(suffix.startswith(f"-{stem}") for suffix, stem in zip(suffixes, stems, strict=True))


def test_a_stem_that_is_unique_is_the_suffix():
    assert file_suffixes([Path("x/p1.h5ad"), Path("y/p1.zarr"), Path("p2.h5ad")]) == ["-p1-0", "-p1-1", "-p2"]


def test_one_name_in_two_files_is_refused_with_the_remedy():
    paths = [Path("p1.h5ad"), Path("p2.h5ad")]
    names = [pd.Index(["c1", "c2", "c2"], dtype=str), pd.Index(["c2", "c1", "c3"], dtype=str)]
    sentence = (
        "2 cell names occur in several files, such as 'c2' in 'p1.h5ad' and 'p2.h5ad', and a name must tell a cell "
        "apart; write cell_names = \"with_file\" to add its file's name to every cell's."
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        join_names(names, paths, "unique")


def test_with_the_file_every_name_carries_it():
    paths = [Path("p1.h5ad"), Path("p2.h5ad")]
    names, note = join_names([pd.Index(["c1", "c2"], dtype=str), pd.Index(["c1"], dtype=str)], paths, "with_file")
    assert names.tolist() == ["c1-p1", "c2-p1", "c1-p2"]
    assert note == "The name of its file was added to the name of every cell, such as 'c1-p1'."


def test_names_that_clash_even_with_their_file_are_refused():
    names = [pd.Index(["c-a"], dtype=str), pd.Index(["c"], dtype=str)]
    with pytest.raises(
        ValueError, match=r"such as 'c-a-b' in 'b.h5ad' and 'a-b.h5ad', .* rename a file or these cells"
    ):
        join_names(names, [Path("b.h5ad"), Path("a-b.h5ad")], "with_file")


def table_of(tmp_path, *lines, header="identifier,name"):
    path = tmp_path / "genes.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return read_gene_table(path)


def renamed(table, *genes):
    found, note = table.rename(pd.Index(genes, dtype=str))
    return found.tolist(), note


def test_genes_are_renamed_where_one_identifier_has_one_name(tmp_path):
    table = table_of(tmp_path, "ENSG01,TP53", "ENSG02,MYC", "ENSG03,")
    assert renamed(table, "ENSG02", "ENSG01", "ENSG03", "other") == (
        ["MYC", "TP53", "ENSG03", "other"],
        "'genes.csv' renames 2 of 4 genes; 2 keep their identifier.",
    )


def test_a_table_may_lead_from_names_to_identifiers(tmp_path):
    assert renamed(table_of(tmp_path, "TP53,ENSG01"), "TP53")[0] == ["ENSG01"]


def test_a_name_of_two_identifiers_renames_neither(tmp_path):
    table = table_of(tmp_path, "ENSG01,X", "ENSG02,X", "ENSG03,Y")
    assert renamed(table, "ENSG01.3", "ENSG03")[0] == ["ENSG01.3", "Y"]
    assert renamed(table, "ENSG02")[0] == ["ENSG02"]


def test_a_gene_is_not_renamed_to_another_gene_of_the_file(tmp_path):
    table = table_of(tmp_path, "ENSG01,TP53", "a,b", "b,a")
    assert renamed(table, "ENSG01", "TP53")[0] == ["ENSG01", "TP53"]
    assert renamed(table, "a", "b")[0] == ["a", "b"]


def test_a_version_is_left_out_where_the_table_does_not_have_it(tmp_path):
    table = table_of(tmp_path, "ENSG01,A", "ENSG02.5,B", "ENSG02.6,C", "ENSMUSG03.1,D")
    assert renamed(table, "ENSG01.4", "ENSG02.5", "ENSMUSG03.7")[0] == ["A", "B", "D"]
    assert renamed(table, "ENSG02.9", "ENSG02")[0] == ["ENSG02.9", "ENSG02"]
    assert renamed(table, "ENSG01.1", "ENSG01.2")[0] == ["ENSG01.1", "ENSG01.2"]
    assert renamed(table, "ENSG01.4_PAR_Y", "AC1.2")[0] == ["ENSG01.4_PAR_Y", "AC1.2"]


def test_genes_that_have_the_tables_names_already_need_no_note(tmp_path):
    table = table_of(tmp_path, "ENSG01,TP53", "ENSG02,MYC")
    assert renamed(table, "MYC", "TP53") == (["MYC", "TP53"], None)
    assert renamed(table, "x")[1] == "'genes.csv' renames 0 of 1 genes; 1 keep their identifier."


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("abcdefghXYZ")),
    st.lists(st.sampled_from("abcdefghXYZ"), unique=True, min_size=1),
)
def test_unique_genes_stay_unique_whatever_the_table(tmp_path_factory, names, genes):
    table = table_of(tmp_path_factory.mktemp("table"), *(f"{key},{name}" for key, name in names.items()))
    found, _ = renamed(table, *genes)
    assert len(set(found)) == len(genes)
    assert all(new in (old, names.get(old)) for old, new in zip(genes, found, strict=True))


BAD = {
    "three fields": (["a,b,c"], "line 2 of gene table 'genes.csv' has 3 fields, and each line has two"),
    "one field": (["a,b", "c"], "line 3 of gene table 'genes.csv' has 1 fields"),
    "two names": (
        ["a,b", "c,d", "a,d"],
        "gene table 'genes.csv' names 'a' both 'b' and 'd', and an identifier has one",
    ),
}


@pytest.mark.parametrize(("lines", "sentence"), BAD.values(), ids=BAD.keys())
def test_a_bad_gene_table_is_refused_in_one_sentence(tmp_path, lines, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        table_of(tmp_path, *lines)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_table_without_its_header_is_refused_rather_than_robbed_of_a_gene(tmp_path):
    sentence = "gene table 'genes.csv' begins with 'ENSG01,TP53', and its two columns are identifier,name; write this"
    with pytest.raises(ValueError, match=sentence):
        table_of(tmp_path, "ENSG02,MYC", header="ENSG01,TP53")


def test_a_table_that_is_not_there_or_not_text_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no gene table '.*none.csv'; give expression.gene_table the"):
        read_gene_table(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"gene table 'x.csv' is not a CSV; write a text file"):
        read_gene_table(tmp_path / "x.csv")


def saved(path, genes, seed, first):
    counts = np.random.default_rng(seed).poisson(1.0, (6, len(genes))).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame({"guide": np.resize(["ctrl", "A"], 6)}, index=[f"c{first + i}" for i in range(6)])
    adata = anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=list(genes)))
    adata.write_zarr(path) if path.suffix == ".zarr" else adata.write_h5ad(path)
    return pd.DataFrame(counts, index=obs.index, columns=list(genes))


def recipe(**changes):
    mapping = {
        "name": "two",
        "control": "ctrl",
        "files": ["a.h5ad", "b.zarr"],
        "columns": {"perturbation": "guide"},
        "expression": {"scale": "counts"},
    }
    return recipe_from_mapping(mapping | changes, "two.toml")


def test_a_union_of_files_holds_every_count_and_each_cells_own_total(tmp_path):
    first = saved(tmp_path / "a.h5ad", A, 0, 0)
    second = saved(tmp_path / "b.zarr", B, 1, 6)
    cells = read_cells(recipe(join="union"), tmp_path)
    both = pd.concat([first, second]).fillna(0)
    assert cells.genes.tolist() == list(both.columns)
    assert cells.names.tolist() == list(both.index)
    np.testing.assert_array_equal(cells.values.toarray(), both)  # noqa: PD011
    np.testing.assert_array_equal(cells.total_counts, both.sum(axis=1))
    assert len(cells.notes) == 1
    assert "not a measured zero" in cells.notes[0]


def test_an_intersection_keeps_totals_over_all_genes_of_each_file(tmp_path):
    first = saved(tmp_path / "a.h5ad", A, 0, 0)
    second = saved(tmp_path / "b.zarr", B, 1, 6)
    cells = read_cells(recipe(join="intersection"), tmp_path)
    assert cells.genes.tolist() == ["G1", "G3"]
    np.testing.assert_array_equal(cells.values.toarray(), pd.concat([first, second])[["G1", "G3"]])  # noqa: PD011
    np.testing.assert_array_equal(cells.total_counts, [*first.sum(axis=1), *second.sum(axis=1)])


def test_files_with_names_and_files_with_identifiers_meet_by_the_table(tmp_path):
    first = saved(tmp_path / "a.h5ad", ["TP53", "MYC"], 0, 0)
    second = saved(tmp_path / "b.zarr", ["ENSG02.1", "ENSG01.7"], 1, 6)
    (tmp_path / "genes.csv").write_text("identifier,name\nENSG01,TP53\nENSG02,MYC\n")
    cells = read_cells(recipe(expression={"scale": "counts", "gene_table": "genes.csv"}), tmp_path)
    assert cells.genes.tolist() == ["TP53", "MYC"]
    both = np.vstack([first.to_numpy(), second[["ENSG01.7", "ENSG02.1"]].to_numpy()])
    np.testing.assert_array_equal(cells.values.toarray(), both)  # noqa: PD011
    assert cells.notes == ("'genes.csv' renames 2 of 2 genes; 0 keep their identifier.",)
    with pytest.raises(FileNotFoundError, match="there is no gene table"):
        read_cells(recipe(expression={"scale": "counts", "gene_table": "none.csv"}), tmp_path)


@pytest.mark.parametrize("rule", ["intersection", "union"])
def test_joining_does_not_depend_on_the_order_of_files_but_for_the_order_of_genes(tmp_path, rule):
    saved(tmp_path / "a.h5ad", A, 0, 0)
    saved(tmp_path / "b.zarr", B, 1, 6)
    one = read_cells(recipe(join=rule), tmp_path)
    other = read_cells(recipe(join=rule, files=["b.zarr", "a.h5ad"]), tmp_path)
    assert set(one.genes) == set(other.genes)
    genes = sorted(one.genes)
    np.testing.assert_array_equal(
        one.log_expression(genes, one.order).toarray(), other.log_expression(genes, other.order).toarray()
    )
