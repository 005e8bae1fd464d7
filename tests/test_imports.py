"""What each command imports: who predicts doesn't wait for what trains, judges or draws."""

import subprocess
import sys

import pytest

LIBRARIES = {"torch", "anndata", "scipy", "lightning", "ot", "sklearn", "matplotlib", "cell_eval", "cell_eval2"}
LIBRARIES |= {"umap", "numba", "rdkit", "tensorboard", "peft", "pandas"}
ROOMS = ("training.fitting", "prediction", "evaluation", "metrics", "results", "figures", "report")
OURS = {f"perturbdiff.{room}" for room in ROOMS}
READING = {"anndata", "pandas", "scipy"}
USED = {
    "--help": set(),
    "split": READING,
    "prepare": READING,
    "train": {*READING, "torch", "lightning", "tensorboard", "perturbdiff.training.fitting", "perturbdiff.prediction"},
    "predict": {*READING, "torch", "perturbdiff.prediction"},
    "evaluate": {*READING, "torch", "matplotlib", *OURS} - {"perturbdiff.training.fitting"},
}
"""What a command may import; what a library imports for itself is not asked."""
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


def words_of(command, screen, predicted, folder):
    run = screen.run
    return {
        "--help": ["--help"],
        "split": ["split", screen.recipe],
        "prepare": ["prepare", screen.recipe, "--out", folder / "screen.store"],
        "train": ["train", screen.recipe, "--out", folder / "run", "--max-steps", "1"],
        "predict": ["predict", run, screen.data, "--part", "test", "--out", folder / "p.h5ad"],
        "evaluate": ["evaluate", predicted, screen.data, "--run", run, "--out", folder / "eval", "--suites", "ours"],
    }[command]


@pytest.mark.parametrize("command", USED)
def test_a_command_imports_what_it_uses(screen, predicted, tmp_path, command):
    found = imported(*words_of(command, screen, predicted, tmp_path)) & {*LIBRARIES, *OURS}
    if command == "train":
        # lightning draws its metrics, whoever asks
        found -= {"matplotlib"}
    assert found <= USED[command]
