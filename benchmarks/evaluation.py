"""How long `perturbdiff evaluate` takes and how much memory it needs, and what its metrics can tell on real data.

    python benchmarks/evaluation.py [--work folder] [--data ../shared/data] [--only speed|real]

Speed: simulated counts, 2,000 genes, 200 cells a perturbation, one cell type; the training cells of the baselines are
another draw of it in two cell types. Each case is a process of its own, with two jobs of one thread; memory is the peak
resident set.
Real data: what every metric says of the baselines and of the ceilings on two public data sets, where the folder of data
is there. Results: benchmarks/results/evaluation.json and evaluation.md."""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.cells.memory import Cells
from perturbdiff.cli import main as run
from perturbdiff.evaluation.evaluate import evaluate
from perturbdiff.evaluation.methods import BASELINES
from perturbdiff.evaluation.scope import Depth
from perturbdiff.files.container import read_anndata
from perturbdiff.metrics.tables import SUITES
from perturbdiff.recipes.dataset import Columns, Expression, recipe_from_mapping, write_recipe
from perturbdiff.recipes.selection import Match
from perturbdiff.results.evaluation import Evaluation

HERE = Path(__file__).parent
N_GENES, N_CELLS, DEPTH = 2000, 200, 2000.0
CONTROLS = 5 * N_CELLS
COLUMNS = {"perturbation": "perturbation", "cell_type": "cell_type"}
LIMITS = {"one model": (120, 4.0), "one model, all baselines": (480, 4.0)}
"""What was asked for: seconds and GiB."""


def simulate(
    path: Path,
    perturbations: int,
    seed: int,
    *,
    strength: float,
    types: Sequence[str] = ("T",),
    predicted: bool = False,
) -> None:
    """Poisson counts; a twentieth of the genes responds to all perturbations alike, a twentieth to each of them."""
    rng, truth = np.random.default_rng(seed), np.random.default_rng(0)
    base = truth.gamma(0.4, 1.0, N_GENES)
    shared = truth.normal(0, 1, N_GENES) * (truth.random(N_GENES) < 0.05)
    parts, labels, kinds = [], [], []
    for kind in types:
        for place in range(perturbations + 1):
            own = np.random.default_rng([1, place])
            change = shared + own.normal(0, 1, N_GENES) * (own.random(N_GENES) < 0.05)
            rate = base / base.sum() * DEPTH * np.exp(strength * change * (place > 0))
            n_cells = N_CELLS if place else CONTROLS
            counts = sp.csr_matrix(rng.poisson(rng.lognormal(0, 0.3, (n_cells, 1)) * rate), dtype=np.float32)
            if predicted:
                totals = np.asarray(counts.sum(axis=1)).ravel()
                counts = sp.csr_matrix((sp.diags_array(1e4 / totals) @ counts).log1p(), dtype=np.float32)
            parts.append(counts)
            labels += [f"drug {place}" if place else "control"] * n_cells
            kinds += [kind] * n_cells
    values: Any = sp.vstack(parts, format="csr")
    adata = anndata.AnnData(
        X=values,
        obs=pd.DataFrame(
            {"perturbation": pd.Categorical(labels), "cell_type": pd.Categorical(kinds)},
            index=[f"cell-{i}" for i in range(len(labels))],
        ),
        var=pd.DataFrame(index=[f"gene-{i}" for i in range(N_GENES)]),
    )
    if predicted:
        adata.uns["perturbdiff"] = {"columns": COLUMNS, "scale": "log1p", "control": "control"}
    adata.write_h5ad(path)


def prepare(folder: Path, perturbations: int, *, trained: bool = True) -> list[str]:
    """Files of one size: predicted, observed, and a recipe of training cells."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "observed.h5ad").exists():
        simulate(folder / "predicted.h5ad", perturbations, 1, strength=0.6, predicted=True)
        simulate(folder / "observed.h5ad", perturbations, 2, strength=1.0)
    if trained and not (folder / "recipe.toml").exists():
        simulate(folder / "training.h5ad", perturbations, 3, strength=0.9, types=("A", "B"))
        recipe = {"name": "training", "control": "control", "files": ["training.h5ad"], "columns": COLUMNS}
        write_recipe(recipe_from_mapping(recipe | {"expression": {"scale": "counts"}}, "it"), folder / "recipe.toml")
    return [str(folder / "predicted.h5ad"), str(folder / "observed.h5ad")]


def timed(files: list[str], folder: Path, *options: object) -> dict[str, Any]:
    """Run the command in a process of its own, one thread a job: seconds, peak memory and its notes."""
    line = ["evaluate", *files, "--out", folder / "eval", "--overwrite", *options]
    command = [sys.executable, __file__, "--worker", *map(str, line)]
    start = time.perf_counter()
    ended = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    *said, last = ended.stderr.splitlines()
    notes = [note for note in said if note and not note.startswith("warning")]
    return {"seconds": round(seconds, 1), **json.loads(last), "notes": notes}


def worker(line: list[str]) -> None:
    """Run the command in this process, then say what it took.

    The peak is that of this program: what the operating system reports of a child may be its parent's.
    """
    sys.argv = ["perturbdiff", *line]
    status = 0
    try:
        run()
    except SystemExit as end:
        status = int(end.code or 0)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    facts = {
        "cpu_seconds": round(time.process_time(), 1),
        "peak_gib": round(int(peak[1]) / 2**20, 2) if peak else float("nan"),
    }
    print(json.dumps(facts), file=sys.stderr)
    sys.exit(status)


def speed(work: Path) -> Iterator[dict[str, Any]]:
    """All cases of time and memory, one after the other."""
    small, large = work / "20", work / "1000"
    of_20 = prepare(small, 20)
    named = ["--perturbation", "perturbation", "--control", "control", "--cell-type", "cell_type", "--scale", "counts"]
    alone = [*named, "--baselines", "none", "--jobs", 2]
    trained = ["--recipe", small / "recipe.toml", "--jobs", 2]
    fresh = iter(range(100))

    def cache() -> list[object]:
        return ["--cache", work / "cache" / str(next(fresh))]

    kept = cache()
    cases: list[tuple[str, list[str], Path, list[object]]] = [
        ("one model", of_20, small, [*alone, *cache()]),
        ("one model, our metrics alone", of_20, small, [*alone, "--suites", "ours", *cache()]),
        ("one model, all baselines", of_20, small, [*trained, *kept]),
        ("the same again, with its cache", of_20, small, [*trained, *kept]),
        ("the same, one job", of_20, small, ["--recipe", small / "recipe.toml", "--jobs", 1, *cache()]),
        ("one model, all baselines, all suites", of_20, small, [*trained, "--suites", ",".join(SUITES), *cache()]),
    ]
    for name, files, folder, options in cases:
        yield {"case": name, "perturbations": 20, **timed(files, folder, *options)}
    middle = work / "160"
    options = ["--recipe", middle / "recipe.toml", "--baselines", "control + mean shift", "--jobs", 2, *cache()]
    name = "one model, mean shift: the largest context that 'paper' judges unasked"
    yield {"case": name, "perturbations": 160, **timed(prepare(middle, 160), middle, *options)}
    of_1000 = prepare(large, 1000, trained=False)
    yield {"case": "one model", "perturbations": 1000, **timed(of_1000, large, *alone, *cache())}
    name = "one model, all baselines, fitted to the training cells of 20 perturbations"
    yield {"case": name, "perturbations": 1000, **timed(of_1000, large, *trained, *cache())}


def half(cells: Cells, keep: NDArray[np.bool_]) -> Cells:
    """Some cells."""
    return cells.take(np.flatnonzero(keep))


def real(data: Path) -> dict[str, Evaluation]:
    """Every baseline and ceiling on the held-out conditions of two data sets; the observed cells stand for a model."""
    found = {}
    columns = Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="batch")
    cells = cells_from_anndata(
        read_anndata(data / "kang_ifnb_1kgenes.h5ad"),
        columns=columns,
        expression=Expression(scale="counts"),
        control="control",
        exclude=(Match(assay_batch=("unknown",)),),
    )
    held = cells.labels["cell_type"].isin(["B cells", "CD14+ Monocytes"]).to_numpy() & ~cells.is_control
    found["Kang"] = judged(half(cells, held | cells.is_control), half(cells, ~held))
    cells = cells_from_anndata(
        read_anndata(data / "papalexi_eccite_thp1_303genes.h5ad"),
        columns=columns.model_copy(update={"total_counts": "total_umi"}),
        expression=Expression(scale="counts"),
        control="control",
    )
    labels = sorted(set(cells.labels["perturbation"].astype(str)) - {"control"})
    held = cells.labels["perturbation"].isin(labels[1::2]).to_numpy()
    found["Papalexi"] = judged(half(cells, held | cells.is_control), half(cells, ~held))
    return found


def judged(test: Cells, training: Cells) -> Evaluation:
    depth = Depth(suites=tuple(SUITES), forced=tuple(SUITES), baselines=tuple(BASELINES), replicates=True)
    return evaluate({"observed cells": test}, test, training=training, seed=0, depth=depth)


def table(found: Evaluation) -> list[str]:
    """What each metric says of every method but the stand-in."""
    methods = [method.name for method in found.methods if method.kind != "predicted"]
    wide = found.overall.pivot_table(index=["suite", "metric"], columns="method", values="value", sort=False)
    apart = found.ranges.set_index(["suite", "metric"])["apart"]
    lines = ["| suite | metric | " + " | ".join(methods) + " | tells |", "|---" * (len(methods) + 3) + "|"]
    for (suite, metric), row in wide.iterrows():
        values = [f"{row[name]:.3f}" if name in row and np.isfinite(row[name]) else "" for name in methods]
        tells = {True: "yes", False: "no"}.get(apart.get((suite, metric)), "")
        lines.append(f"| {suite} | {metric} | " + " | ".join(values) + f" | {tells} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="for simulated files, 4 GB; a temporary folder when absent")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", choices=["speed", "real"])
    parser.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
    out = HERE / "results"
    kept = json.loads((out / "evaluation.json").read_text()) if (out / "evaluation.json").exists() else {}
    if arguments.only != "speed" and arguments.data.is_dir():
        found = real(arguments.data)
        kept["real"] = {name: table(one) for name, one in found.items()}
        kept["warnings"] = {name: [caution.text for caution in one.warnings] for name, one in found.items()}
        write(out, kept)
    if arguments.only != "real":
        kept["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        with tempfile.TemporaryDirectory() as folder:
            kept["speed"] = []
            for row in speed(arguments.work or Path(folder)):
                kept["speed"].append(row)
                write(out, kept)
    print((out / "evaluation.md").read_text())


def write(out: Path, kept: dict[str, Any]) -> None:
    """Both files of results."""
    lines = ["# Evaluation", ""]
    if "speed" in kept:
        lines += [
            f"{kept['machine']}; 200 cells a perturbation, 2,000 genes, one cell type; two jobs of one thread.",
            "",
        ]
        lines += [
            "| perturbations | case | seconds | CPU seconds | peak memory, GiB | asked for |",
            "|---|---|---|---|---|---|",
        ]
    for row in kept.get("speed", []):
        asked = LIMITS.get(row["case"]) if row["perturbations"] == 20 else None
        limit = f"{asked[0]} s, {asked[1]:g} GiB" if asked else ""
        numbers = f"{row['seconds']:.0f} | {row['cpu_seconds']:.0f} | {row['peak_gib']:.2f}"
        lines.append(f"| {row['perturbations']:,} | {row['case']} | {numbers} | {limit} |")
    for row in kept.get("speed", []):
        lines += [f"\n{row['perturbations']:,}, {row['case']}: {note}" for note in row["notes"] if "left out" in note]
    for name, rows in kept.get("real", {}).items():
        lines += ["", f"## What the metrics can tell: {name}", "", *rows, ""]
        lines += [f"- {text}" for text in kept["warnings"][name]]
    (out / "evaluation.json").write_text(json.dumps(kept, indent=1) + "\n")
    (out / "evaluation.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
