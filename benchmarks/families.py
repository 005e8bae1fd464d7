"""What several populations cost: time and memory of K draws, as cells and as a summary.

    python benchmarks/families.py

A simulated screen of 1,000 genes, a tiny model at step 0, one condition of 256 cells. Each K is measured in a process
of its own, the median of three; memory is the process's peak resident set above that before the draws. Results:
benchmarks/results/families.md and families.json."""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from perturbdiff import PerturbDiff, simulate

HERE = Path(__file__).parent
WAYS = {"cells": (1, 4, 16), "summary": (40, 80, 160)}


def worker(run: Path, way: str, draws: int) -> dict[str, float]:
    model = PerturbDiff.load(run)
    adata = simulate(
        "interaction", n_genes=1000, n_assay_batches=4, n_cell_types=2, control_cells_per_group=256, seed=0
    )
    controls = adata[adata.obs["perturbation"] == "control"].copy()
    asked = {"perturbation": "stimulus_1", "cell_type": "type_1", "assay_batch": "donor_4", "device": "cpu"}
    call = model.predict if way == "cells" else model.summarise
    model.predict(controls, **asked)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    call(controls, **asked, populations=draws)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mebibytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        run, way, draws = arguments.worker
        print(json.dumps(worker(Path(run), way, int(draws))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        adata = simulate("interaction", n_genes=1000, n_assay_batches=4, n_cell_types=2, seed=0)
        model = PerturbDiff.from_anndata(
            adata,
            perturbation="perturbation",
            control="control",
            cell_type="cell_type",
            assay_batch="assay_batch",
            model={"preset": "tiny"},
            training={"max_steps": 1, "learning_rate": 1e-12},
        )
        rule = {"part": "test", "perturbation": ["stimulus_1"], "assay_batch": ["donor_4"]}
        model.train(hold_out=[rule], run=folder, device="cpu", show_progress=False)
        for _ in range(3):
            for way, numbers in WAYS.items():
                for draws in numbers:
                    command = [sys.executable, __file__, "--worker", folder, way, str(draws)]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    rows.append({"way": way, "draws": draws, **json.loads(done.stdout.splitlines()[-1])})
                    print(rows[-1], flush=True)
    lines = ["| way | populations | seconds | of one population's | MiB |", "|---|---|---|---|---|"]
    means = {}
    for way, numbers in WAYS.items():
        for draws in numbers:
            own = [row for row in rows if (row["way"], row["draws"]) == (way, draws)]
            means[way, draws] = [statistics.median(row[what] for row in own) for what in ("seconds", "mebibytes")]
            seconds, memory = means[way, draws]
            lines.append(
                f"| {way} | {draws} | {seconds:.2f} | {seconds / means['cells', 1][0]:.1f} times | {memory:.0f} |"
            )
    text = "# Several populations: time and memory\n\n" + __doc__.split("\n\n")[2] + "\n\n" + "\n".join(lines) + "\n"
    (HERE / "results" / "families.md").write_text(text)
    (HERE / "results" / "families.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
