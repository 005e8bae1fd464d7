"""What `perturbdiff prepare` says to bad input, and what is left to see of a store that was not made.

    python benchmarks/refusals.py

Each case runs the command line in a process of its own, in a folder of its own, on small simulated files. A case passes
where the command ends with status 2 and one sentence that names the trouble, and no store is there; a label with a path
separator is no trouble: its store is made, and it becomes part of no path. The case of the full disk needs the right to
mount a small tmpfs. Results: benchmarks/results/refusals.json and refusals.md."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from perturbdiff import simulate
from perturbdiff.recipes.dataset import recipe_from_mapping, write_recipe

HERE = Path(__file__).parent
COLUMNS = ("perturbation", "cell_type", "assay_batch")
SLOW = "from perturbdiff.store import build, spill; build._CELLS = 40"


def cells(seed: int, edit: Callable[[AnnData], None] | None = None) -> AnnData:
    """A small file."""
    adata = simulate(
        "additive",
        n_genes=60,
        n_cell_types=2,
        n_assay_batches=2,
        n_perturbations=3,
        cells_per_group=200,
        control_cells_per_group=200,
        seed=seed,
    )
    adata.obs_names = [f"cell {i} of {seed}" for i in range(adata.n_obs)]
    adata.obs = adata.obs.astype(object)
    if edit is not None:
        edit(adata)
    return adata


def relabelled(label: str) -> Callable[[AnnData], None]:
    def edit(adata: AnnData) -> None:
        adata.obs["perturbation"] = adata.obs["perturbation"].replace("stimulus_1", label)

    return edit


def named_alike(adata: AnnData) -> None:
    adata.obs_names = [f"cell {i} of 0" for i in range(adata.n_obs)]


def without_column(adata: AnnData) -> None:
    del adata.obs["cell_type"]


def other_genes(adata: AnnData) -> None:
    adata.var_names = [f"other_{gene}" if i < 5 else gene for i, gene in enumerate(adata.var_names)]


def unlabelled(adata: AnnData) -> None:
    adata.obs.loc[adata.obs_names[7], "perturbation"] = np.nan


def write(folder: Path, edit: Callable[[AnnData], None] | None = None) -> Path:
    """Two files, the second one edited, and their recipe."""
    for seed in range(2):
        cells(seed, edit if seed else None).write_h5ad(folder / f"{seed}.h5ad")
    mapping = {
        "name": "refusals",
        "control": "control",
        "files": ["0.h5ad", "1.h5ad"],
        "columns": {name: name for name in COLUMNS},
        "expression": {"scale": "counts"},
    }
    write_recipe(recipe_from_mapping(mapping, "benchmarks/refusals.py"), folder / "recipe.toml")
    return folder / "recipe.toml"


def prepare(recipe: Path, out: Path, meanwhile: Callable[[Path], None] | None = None) -> dict[str, Any]:
    """Run the command; `meanwhile` is done when the first cells are spilled."""
    program = f"{SLOW}; import sys; from perturbdiff.cli import main; sys.argv = ['perturbdiff', *sys.argv[1:]]; main()"
    if meanwhile is not None:
        # stop after the first chunk until the harm is done
        program = (
            f"{SLOW}; import os, time\n"
            "original = build.spill\n"
            "def spill(*args):\n"
            "    original(*args)\n"
            "    mark = os.environ['MARK']\n"
            "    if not os.path.exists(mark + '.seen'):\n"
            "        open(mark + '.seen', 'w').close()\n"
            "        while not os.path.exists(mark + '.done'): time.sleep(0.01)\n"
            "build.spill = spill\n"
        ) + program.removeprefix(f"{SLOW}; ")

    mark = recipe.parent / "mark"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "prepare", str(recipe), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"MARK": str(mark), "COLUMNS": "1000"},
    )
    if meanwhile is not None:
        while not mark.with_name("mark.seen").exists() and process.poll() is None:
            time.sleep(0.01)
        meanwhile(recipe.parent)
        mark.with_name("mark.done").touch()
    _, err = process.communicate()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    return {"status": process.returncode, "said": errors[-1] if errors else "", "store": out.exists()}


def truncate(folder: Path) -> None:
    with (folder / "1.h5ad").open("r+b") as file:
        file.truncate((folder / "1.h5ad").stat().st_size // 2)


def of_files(edit: Callable[[AnnData], None] | None, meanwhile: Callable[[Path], None] | None = None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="refusals.") as name:
        return prepare(write(Path(name), edit), Path(name) / "made.store", meanwhile)


def full_disk() -> dict[str, Any] | None:
    with tempfile.TemporaryDirectory(prefix="refusals.") as name:
        small = Path(name) / "small"
        small.mkdir()
        mounted = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)]
        if subprocess.run(mounted, capture_output=True, check=False).returncode:
            return None
        try:
            return prepare(write(Path(name)), small / "made.store")
        finally:
            subprocess.run(["umount", str(small)], check=True)


def newer() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="refusals.") as name:
        recipe, store = write(Path(name)), Path(name) / "made.store"
        prepare(recipe, store)
        manifest = json.loads((store / "manifest.json").read_text())
        (store / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
        command = [sys.executable, "-m", "perturbdiff", "split", str(store)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        shutil.rmtree(store)
        return {"status": ended.returncode, "said": ended.stderr.strip(), "store": store.exists()}


CASES: dict[str, tuple[str, Callable[[], dict[str, Any] | None]]] = {
    "a file that vanishes midway": (r"1\.h5ad", lambda: of_files(None, lambda folder: (folder / "1.h5ad").unlink())),
    "a file that is cut short midway": (r"1\.h5ad", lambda: of_files(None, truncate)),
    "a full disk": ("space|full", full_disk),
    "a column that one file lacks": ("'cell_type'", lambda: of_files(without_column)),
    "files with different genes": ("genes", lambda: of_files(other_genes)),
    "two files with the same cell names": ("cell names occur in several files", lambda: of_files(named_alike)),
    "a cell without a label": ("no label", lambda: of_files(unlabelled)),
    "a label with a newline": ("stimulus", lambda: of_files(relabelled("stimulus\n1"))),
    "a label with a path separator": ("", lambda: of_files(relabelled("../stimulus/1"))),
    "a store made by a newer version": ("newer perturbdiff", newer),
}


def main() -> None:
    rows = []
    for name, (pattern, case) in CASES.items():
        found = case()
        if found is None:
            rows.append({"case": name, "said": "not tried: no right to mount", "passed": None})
        else:
            fine = found["status"] == 0 and found["store"] and not found["said"]
            refused = found["status"] == 2 and not found["store"] and bool(re.search(pattern, found["said"]))
            one = found["said"].count("\n") == 0
            rows.append({"case": name, **found, "passed": (refused and one) if pattern else fine})
        print(rows[-1], flush=True)
    lines = ["| case | status | sentence | store visible | as it should be |", "|---|---|---|---|---|"]
    for row in rows:
        said = re.sub(r"/\S*/", "", row["said"]).replace("|", "/")
        lines.append(f"| {row['case']} | {row.get('status', '')} | {said} | {row.get('store', '')} | {row['passed']} |")
    text = "\n".join(lines)
    (HERE / "results" / "refusals.md").write_text(f"# Bad input\n\n{text}\n")
    (HERE / "results" / "refusals.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
