"""`--guidance` is a number or a strength for each covariate, the same as from Python; all else is refused."""

import json

import numpy as np
import pytest
from anndata import AnnData, read_h5ad

from perturbdiff.cli.options import guidance_of
from perturbdiff.model import PerturbDiff


@pytest.fixture
def line(screen, tmp_path):
    """A prediction of one condition, but for its guidance."""
    condition = ["--perturbation", "stimulus_1", "--cell-type", "type_3", "--device", "cpu", "--quiet"]
    return ["predict", screen.run, screen.data, *condition, "--out", tmp_path / "predicted.h5ad"]


def recorded(adata: AnnData):
    return json.loads(adata.uns["perturbdiff"]["sampling"])["guidance"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1.5", 1.5),
        ("0", 0.0),
        (" 2 ", 2.0),
        ("perturbation=1.5", {"perturbation": 1.5}),
        ("perturbation=1.5,cell_type=0.5", {"perturbation": 1.5, "cell_type": 0.5}),
        ("cell_type = 1, assay_batch = .5", {"cell_type": 1.0, "assay_batch": 0.5}),
    ],
)
def test_the_option_reads_a_number_or_one_for_each_covariate(text, wanted):
    assert guidance_of(text) == wanted


@pytest.mark.parametrize(
    ("text", "sampling", "stored"),
    [
        ("1.5", {"guidance": 1.5}, 1.5),
        (
            "perturbation=1.5,cell_type=0.5",
            {"guidance": {"perturbation": 1.5, "cell_type": 0.5}},
            {"perturbation": 1.5, "cell_type": 0.5, "assay_batch": 0.0},
        ),
    ],
)
def test_the_command_line_guides_as_python_does_and_the_file_says_how(cli, screen, line, text, sampling, stored):
    assert cli(*line, "--guidance", text).status == 0
    written = read_h5ad(line[-1])
    model = PerturbDiff.load(screen.run)
    same, plain = (
        model.predict(
            read_h5ad(screen.data), perturbation="stimulus_1", cell_type="type_3", device="cpu", sampling=given
        )
        for given in (sampling, None)
    )
    assert recorded(written) == recorded(same) == stored
    np.testing.assert_array_equal(written.X.toarray(), same.X.toarray())
    assert np.abs(written.X.toarray() - plain.X.toarray()).max() > 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("strong", "--guidance 'strong' is no number and no list of them; write for example 1.5, or perturbation=1.5"),
        ("1,5", "--guidance '1,5' is no number and no list of them"),
        ("", "--guidance '' is no number"),
        ("perturbation=", "'perturbation=' is no number and no list of them"),
        ("perturbation=1.5,", "'perturbation=1.5,' is no number and no list of them"),
        ("perturbation=1.5;cell_type=1", "is no number and no list of them"),
        ("perturbation=1,perturbation=2", "names a covariate twice; write for example 1.5"),
        ("celltype=1.5", "sampling.guidance: 'celltype' is not a key here; the nearest is 'cell_type'"),
        ("=1.5", "sampling.guidance: '' is not a key here; there are 'perturbation', 'cell_type', 'assay_batch'"),
        ("-1", "sampling.guidance: -1.0 is no strength, which is a number of at least 0; write guidance = 1.0"),
        ("nan", "sampling.guidance: nan is no strength, which is a number of at least 0"),
        ("perturbation=-1", "sampling.guidance.perturbation is -1.0, which should be greater than or equal to 0"),
        ("perturbation=nan", "sampling.guidance.perturbation is nan, which should be"),
    ],
)
def test_a_guidance_that_makes_no_sense_is_refused_in_one_sentence(cli, line, text, sentence):
    assert cli(*line, "--guidance", text).refused(sentence)
    assert not line[-1].exists()
