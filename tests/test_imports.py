"""What each command imports: who predicts doesn't wait for what trains, judges or draws."""

import subprocess
import sys

import pytest

HEAVY = {"lightning", "ot", "sklearn", "matplotlib", "cell_eval", "cell_eval2", "umap", "numba", "rdkit", "tensorboard"}
OURS = {"perturbdiff.report", "perturbdiff.evaluation", "perturbdiff.comparison"}
SCRIPT = """
import sys
from perturbdiff.cli import main
sys.argv = ["perturbdiff", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print("\\n" + " ".join(sys.modules))
"""


def imported(*words):
    """The modules that a command has imported when it ends well."""
    command = [sys.executable, "-c", SCRIPT, *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(ended.stdout.splitlines()[-1].split())


def test_help_imports_nothing_that_takes_time():
    assert not imported("--help") & {*HEAVY, *OURS, "torch", "anndata", "scipy"}


@pytest.mark.parametrize("command", ["split", "predict"])
def test_splitting_and_predicting_import_nothing_that_trains_transports_judges_or_draws(screen, tmp_path, command):
    words = {
        "split": ["split", screen.recipe],
        "predict": ["predict", screen.run, screen.data, "--part", "test", "--out", tmp_path / "p.h5ad"],
    }
    own = {"torch"} if command == "split" else set()
    assert not imported(*words[command]) & {*HEAVY, *OURS, *own}
