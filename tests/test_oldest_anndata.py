"""The files that we write open in the oldest anndata that cell-eval allows, with all that is in them."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import requires, version
from importlib.util import find_spec

import anndata
import pytest

from perturbdiff.io import write_h5ad

READ = """
import json, sys, warnings
warnings.simplefilter("ignore")
from importlib.metadata import version
import anndata
found = []
for path in sys.argv[1:]:
    adata = anndata.read_h5ad(path)
    columns = {name: adata.obs[name].astype(str).tolist() for name in adata.obs}
    cells, genes, notes = list(adata.obs_names), list(adata.var_names), sorted(adata.uns)
    found.append([columns, cells, genes, notes, float(adata.X.sum())])
print(json.dumps([version("anndata"), found]))
"""


@pytest.fixture(scope="module")
def oldest(tmp_path_factory):
    """A folder with the oldest anndata that cell-eval allows, and its version."""
    (bound,) = re.findall(r"^anndata>=([\d.]+)", "\n".join(requires("cell-eval") or []), re.MULTILINE)
    folder = tmp_path_factory.mktemp("oldest")
    program = [sys.executable, "-m", "pip"] if find_spec("pip") else [shutil.which("uv") or "uv", "pip"]
    try:
        install = [*program, "install", "--quiet", "--no-deps", "--target", str(folder), f"anndata=={bound}"]
        subprocess.run(install, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"anndata {bound} cannot be downloaded here: {error}")
    return folder, bound


def read(files, folder=None):
    environment = os.environ | ({} if folder is None else {"PYTHONPATH": str(folder)})
    command = [sys.executable, "-c", READ, *map(str, files)]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_written_files_are_read_alike_by_the_oldest_anndata_that_cell_eval_allows(
    oldest, cli, screen, predicted, adata, tmp_path
):
    shifted, copy = tmp_path / "shifted.h5ad", tmp_path / "copy.h5ad"
    assert cli("baseline", "control + mean shift", screen.data, "--recipe", screen.recipe, "--out", shifted).status == 0
    write_h5ad(adata, copy)
    folder, bound = oldest
    files = [predicted, shifted, copy]
    (was, found), (now, expected) = read(files, folder), read(files)
    assert (was, now) == (bound, version("anndata"))
    assert was != now
    assert found == expected
    assert found[0][1] == list(anndata.read_h5ad(predicted).obs_names)
    assert "perturbdiff" in found[0][3]
