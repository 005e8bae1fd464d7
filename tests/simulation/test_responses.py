import anndata
import numpy as np
import pytest

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.recipes.dataset import Columns, Expression
from perturbdiff.simulation.responses import simulate_combinations, simulate_doses, simulate_modalities, true_change

ALL = [simulate_doses, simulate_modalities, simulate_combinations]
FEW = {"cells_per_group": 2, "control_cells_per_group": 3}


def change_of(adata, label):
    truth = adata.uns["truth"]
    return truth["change"][list(truth["conditions"]).index(label)]


def cosine(u, v):
    return u @ v / np.linalg.norm(u) / np.linalg.norm(v)


def level(adata, cells):
    """log1p of the mean expression per 10^4 [genes], which count noise does not bias, and its standard error."""
    counts = adata.X[cells].toarray()
    expression = 1e4 * counts / counts.sum(axis=1, keepdims=True)
    mean = expression.mean(axis=0)
    return np.log1p(mean), expression.std(axis=0) / np.sqrt(len(counts)) / (1 + mean)


def assert_counts_change_by_the_effect(adata, cells, place):
    control, error_of_control = level(adata, (adata.obs["perturbation"] == "control").to_numpy())
    perturbed, error = level(adata, cells.to_numpy())
    z = (perturbed - control - adata.uns["truth"]["effect"][place]) / np.hypot(error, error_of_control)
    assert np.abs(z).max() < 5
    assert (z**2).mean() == pytest.approx(1, abs=0.45)
    assert abs(z.mean()) < 0.4


@pytest.mark.parametrize("simulate", ALL)
def test_counts_are_raw_and_every_group_is_full(simulate):
    adata = simulate(**FEW, n_cell_types=3, n_assay_batches=2)
    assert adata.X.format == "csr"
    np.testing.assert_array_equal(adata.X.data, np.round(adata.X.data))
    columns = [name for name in adata.obs if name != "dose_unit"]
    sizes = adata.obs.groupby(columns, observed=True, dropna=False).size()
    assert set(sizes["control"]) == {3}
    assert set(sizes.drop("control")) == {2}
    assert len(sizes) == 6 * (1 + len(adata.uns["truth"]["conditions"]))


@pytest.mark.parametrize("simulate", ALL)
def test_the_seed_alone_decides(simulate):
    first, again, other = (simulate(**FEW, seed=seed) for seed in (3, 3, 4))
    for part in ("data", "indices", "indptr"):
        assert getattr(first.X, part).tobytes() == getattr(again.X, part).tobytes()
    assert first.obs.equals(again.obs)
    assert first.uns["truth"]["effect"].tobytes() == again.uns["truth"]["effect"].tobytes()
    assert (first.X != other.X).nnz > 0
    assert not np.allclose(first.uns["truth"]["programme"], other.uns["truth"]["programme"])


@pytest.mark.parametrize("simulate", ALL)
def test_the_effect_is_the_change_up_to_renormalisation_and_the_floor(simulate):
    for seed in range(5):
        truth = simulate(**FEW, seed=seed).uns["truth"]
        assert np.abs(truth["change"]).max() > 0.5
        assert np.abs(truth["effect"] - truth["change"]).mean() < 0.05


def test_counts_change_by_the_effect_up_to_sampling_error_under_a_drug():
    adata = simulate_doses(n_drugs=3, doses=(0.3, 10.0), cells_per_group=400, control_cells_per_group=400, seed=1)
    truth = adata.uns["truth"]
    for place, (drug, dose) in enumerate(zip(truth["drug"], truth["dose"], strict=True)):
        cells = (adata.obs["perturbation"] == drug) & (adata.obs["dose"] == dose)
        assert_counts_change_by_the_effect(adata, cells, place)


@pytest.mark.parametrize(
    ("simulate", "options"),
    [(simulate_modalities, {"n_genes_perturbed": 3}), (simulate_combinations, {"n_agents": 3, "interaction": 0.5})],
)
def test_counts_change_by_the_effect_up_to_sampling_error_under_labels(simulate, options):
    adata = simulate(**options, cells_per_group=400, control_cells_per_group=400, seed=1)
    for place, label in enumerate(adata.uns["truth"]["conditions"]):
        assert_counts_change_by_the_effect(adata, adata.obs["perturbation"] == label, place)


def test_half_of_the_programme_is_reached_at_ec50_and_all_of_it_far_above():
    adata = simulate_doses(**FEW)
    truth = adata.uns["truth"]
    for a, drug in enumerate(truth["agents"]):
        np.testing.assert_allclose(true_change(adata, drug, truth["ec50"][a]), truth["programme"][a] / 2, rtol=1e-9)
        np.testing.assert_allclose(true_change(adata, drug, 1e20), truth["programme"][a], rtol=1e-9)
        np.testing.assert_allclose(true_change(adata, drug, 1e-20), 0, atol=1e-12)


def test_the_change_at_a_dose_is_the_hill_curve_times_the_programme():
    truth = simulate_doses(**FEW).uns["truth"]
    for label, drug, dose, change in zip(
        *(truth[key] for key in ("conditions", "drug", "dose", "change")), strict=True
    ):
        assert label == f"[('{drug}', {dose:g}, 'uM')]"
        a = list(truth["agents"]).index(drug)
        power = dose ** truth["hill"][a]
        expected = power / (power + truth["ec50"][a] ** truth["hill"][a]) * truth["programme"][a]
        np.testing.assert_allclose(change, expected, rtol=1e-9)


def test_other_doses_of_the_same_seed_are_of_the_same_drugs():
    few, many = simulate_doses(**FEW, doses=(0.5,)), simulate_doses(**FEW)
    np.testing.assert_array_equal(few.uns["truth"]["change"][0], true_change(many, "drug_1", 0.5))


def test_doses_are_missing_in_control_cells_only_and_the_library_reads_them_as_the_conditions():
    adata = simulate_doses(**FEW, n_drugs=2, unit="nM")
    np.testing.assert_array_equal(np.isnan(adata.obs["dose"]), adata.obs["perturbation"] == "control")
    assert set(adata.obs["dose_unit"]) == {"nM"}
    columns = Columns(perturbation="perturbation", cell_type="cell_type", dose="dose", dose_unit="dose_unit")
    cells = cells_from_anndata(adata, columns=columns, expression=Expression(scale="counts"), control="control")
    assert set(cells.labels["perturbation"]) == {"control", *adata.uns["truth"]["conditions"]}


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_two_modalities_of_a_gene_share_what_is_asked_and_differ_in_sign(share):
    adata = simulate_modalities(**FEW, modalities=("CRISPRi", "CRISPRa", "knockout"), share=share)
    for gene in adata.uns["truth"]["agents"]:
        down, up, out = (change_of(adata, f"{gene}|{modality}") for modality in ("CRISPRi", "CRISPRa", "knockout"))
        assert cosine(down, up) == pytest.approx(-share, abs=1e-12)
        assert cosine(down, out) == pytest.approx(share, abs=1e-12)
        assert np.linalg.norm(down) / np.linalg.norm(up) == pytest.approx(0.8 / 0.6)


def test_at_share_1_a_knockout_takes_away_the_programme():
    adata = simulate_modalities(**FEW, modalities=("knockout",), share=1)
    np.testing.assert_allclose(adata.uns["truth"]["change"], -adata.uns["truth"]["programme"])


def test_the_change_of_two_is_the_sum_of_their_changes_at_interaction_0():
    truth = simulate_combinations(**FEW).uns["truth"]
    single = dict(zip(truth["agents"], truth["change"], strict=False))
    for first, second, change in zip(truth["first"], truth["second"], truth["change"], strict=True):
        np.testing.assert_allclose(change, single[first] + (single[second] if second else 0), atol=1e-12)
    assert len(truth["conditions"]) == 6 + 15


def test_the_interaction_is_of_the_interacting_pairs_alone_and_grows_with_its_factor():
    plain = simulate_combinations(**FEW)
    once, twice = (
        simulate_combinations(**FEW, interaction=factor, interacting=[("gene_2", "gene_1")]) for factor in (1, 2)
    )
    part = change_of(once, "gene_1+gene_2") - change_of(plain, "gene_1+gene_2")
    assert (np.abs(part) > 0.5).sum() == 12
    np.testing.assert_allclose(change_of(twice, "gene_1+gene_2") - change_of(plain, "gene_1+gene_2"), 2 * part)
    for label in set(plain.uns["truth"]["conditions"]) - {"gene_1+gene_2"}:
        np.testing.assert_array_equal(change_of(once, label), change_of(plain, label))


@pytest.mark.parametrize(
    ("simulate", "pairs", "labels"),
    [
        (simulate_modalities, [("gene_2", "CRISPRa")], {"gene_2|CRISPRa"}),
        (simulate_combinations, [("gene_3", "gene_2")], {"gene_2+gene_3", *(f"gene_{i}" for i in range(1, 7))}),
        (simulate_combinations, [], {f"gene_{i}" for i in range(1, 7)}),
    ],
)
def test_pairs_choose_what_is_in_the_data_and_nothing_of_the_truth(simulate, pairs, labels):
    some, every = simulate(**FEW, pairs=pairs), simulate(**FEW)
    assert set(some.obs["perturbation"]) == {"control", *labels}
    assert set(some.uns["truth"]["conditions"][some.uns["truth"]["in_data"]]) == labels
    assert every.uns["truth"]["in_data"].all()
    np.testing.assert_array_equal(some.uns["truth"]["change"], every.uns["truth"]["change"])
    assert some.uns["features"].equals(every.uns["features"])


@pytest.mark.parametrize("simulate", ALL)
def test_features_of_other_agents_predict_the_programme_of_an_unseen_one(simulate):
    name = {simulate_doses: "n_drugs", simulate_modalities: "n_genes_perturbed", simulate_combinations: "n_agents"}
    adata = simulate(**FEW, **{name[simulate]: 12})
    features, truth = adata.uns["features"], adata.uns["truth"]
    assert list(features.index) == list(truth["agents"])
    known, programme = features.to_numpy(), truth["programme"]
    fitted = np.linalg.lstsq(known[:-1], programme[:-1], rcond=None)[0]
    assert cosine(known[-1] @ fitted, programme[-1]) > 0.8
    assert cosine(known[-1] @ truth["loading"], programme[-1]) > 0.8


@pytest.mark.parametrize("simulate", ALL)
def test_a_programme_has_a_few_dozen_genes_half_of_them_up(simulate):
    programme = simulate(**FEW).uns["truth"]["programme"]
    assert set((programme != 0).sum(axis=1)) == {4 * 8 + 6}
    assert set((programme > 0).sum(axis=1)) == {4 * 4 + 3}


@pytest.mark.parametrize("simulate", ALL)
def test_all_of_it_survives_a_file(simulate, tmp_path):
    adata = simulate(**FEW)
    adata.write_h5ad(tmp_path / "simulated.h5ad")
    read = anndata.read_h5ad(tmp_path / "simulated.h5ad")
    assert (read.X != adata.X).nnz == 0
    assert list(read.obs) == list(adata.obs)
    np.testing.assert_array_equal(read.uns["features"], adata.uns["features"])
    assert list(read.uns["features"].index) == list(adata.uns["features"].index)
    assert set(read.uns["truth"]) == set(adata.uns["truth"])
    for key, value in adata.uns["truth"].items():
        np.testing.assert_array_equal(np.asarray(read.uns["truth"][key]), np.asarray(value))


def test_the_change_at_a_dose_can_be_asked_of_a_file(tmp_path):
    adata = simulate_doses(**FEW)
    adata.write_h5ad(tmp_path / "simulated.h5ad")
    read = anndata.read_h5ad(tmp_path / "simulated.h5ad")
    np.testing.assert_array_equal(true_change(read, "drug_2", 0.7), true_change(adata, "drug_2", 0.7))


@pytest.mark.parametrize("simulate", ALL)
def test_the_smallest_sizes_are_simulated(simulate):
    counted = {simulate_doses: "n_drugs", simulate_modalities: "n_genes_perturbed", simulate_combinations: "n_agents"}
    options = {counted[simulate]: 1, "n_features": 1, "n_genes": 76, "n_cell_types": 1, **FEW}
    assert simulate(**options).n_vars == 76


@pytest.mark.parametrize(
    ("simulate", "options", "sentence"),
    [
        (simulate_doses, {"n_drugs": 0}, "n_drugs=0"),
        (simulate_doses, {"n_features": 0}, "n_features=0"),
        (simulate_doses, {"n_genes": 75}, "n_genes=75 has 37 genes that may respond .* n_features=4 calls for 38"),
        (simulate_doses, {"n_genes": 1000, "n_features": 25}, "n_features=25 calls for 206"),
        (simulate_doses, {"doses": ()}, "doses is empty"),
        (simulate_doses, {"doses": (1.0, 1)}, "dose 1 is twice"),
        (simulate_doses, {"doses": (0.0,)}, "a dose is a number above 0"),
        (simulate_doses, {"doses": (-1.0,)}, "a dose is a number above 0"),
        (simulate_doses, {"doses": (float("nan"),)}, "a dose is a number above 0"),
        (simulate_doses, {"unit": "um"}, "unknown unit 'um'; the nearest is 'uM'"),
        (simulate_modalities, {"n_genes_perturbed": 0}, "n_genes_perturbed=0"),
        (simulate_modalities, {"n_genes": 123}, "calls for 62"),
        (simulate_modalities, {"modalities": ()}, "no list of modalities; name some of knockout"),
        (simulate_modalities, {"modalities": "CRISPRi"}, "modalities='CRISPRi' is no list"),
        (simulate_modalities, {"modalities": ("CRISPR",)}, "'CRISPR' is unknown; the nearest is 'CRISPR[ia]'"),
        (simulate_modalities, {"modalities": ("CRISPRi", "CRISPRi")}, "'CRISPRi' is twice"),
        (simulate_modalities, {"share": 1.1}, "share=1.1 is not from 0 to 1"),
        (simulate_modalities, {"share": float("nan")}, "share=nan is not from 0 to 1"),
        (simulate_modalities, {"pairs": []}, "pairs is empty"),
        (
            simulate_modalities,
            {"pairs": [("gene_1", "CRISPRx")]},
            r"\('gene_1', 'CRISPRx'\) .* nearest is 'gene_1\|CRISPR",
        ),
        (simulate_combinations, {"n_agents": 0}, "n_agents=0"),
        (simulate_combinations, {"cells_per_group": 0}, "cells_per_group=0"),
        (simulate_combinations, {"interaction": float("inf")}, "interaction=inf is not finite"),
        (simulate_combinations, {"pairs": [("gene_1", "gene_1")]}, r"\('gene_1', 'gene_1'\) cannot be simulated"),
        (simulate_combinations, {"pairs": [("gene_1", "gene_2"), ("gene_2", "gene_1")]}, "twice there"),
        (simulate_combinations, {"interacting": [("gene_1", "gene_7")]}, "cannot be simulated"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_one_sentence(simulate, options, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        simulate(**FEW | options)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_a_change_that_is_not_known_is_refused():
    adata = simulate_doses(**FEW, n_drugs=2)
    with pytest.raises(ValueError, match="drug 'drug_3' is not one of the 2 simulated ones; the nearest is 'drug_"):
        true_change(adata, "drug_3", 1.0)
    with pytest.raises(ValueError, match="a dose is a number above 0"):
        true_change(adata, "drug_1", 0.0)
    with pytest.raises(ValueError, match="no 'ec50'; give data that simulate_doses has made"):
        true_change(simulate_combinations(**FEW), "gene_1", 1.0)
