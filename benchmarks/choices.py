"""What each departure from the release does on validation cells: one setting changed at a time.

    python benchmarks/choices.py --data ../shared/data --seeds 0 1 2

Trains benchmarks/kang.toml with each change and records the validation energy distance (IFN-beta in CD8 T cells,
never seen in training) at the best and at the last of the validations: the difference is what early stopping saves.
"nothing trained" is the model before its first step, which with target "residual" is the control cells plus the mean
shift. Test cells are not looked at. Results: benchmarks/results/choices.md and choices.json."""

import argparse
import csv
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from perturbdiff import PerturbDiff, read_recipe

HERE = Path(__file__).parent
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "defaults": {},
    "nothing trained": {"training": {"max_steps": 1, "learning_rate": 1e-12}},
    "target change": {"model": {"target": "change"}},
    "target cell": {"model": {"target": "cell"}},
    "rho 0 (the paper's noise)": {"model": {"shared_noise": 0.0}},
    "with MSE, weight 1": {"training": {"mse_weight": 1.0}},
    "self-conditioning 1/2": {"training": {"self_conditioning": 0.5}},
    "joint features": {"model": {"joint": "features"}},
}


def curve(data: Path, seed: int, change: dict[str, dict[str, Any]], steps: int) -> list[float]:
    """Validation energies of one training, in order."""
    recipe = read_recipe(HERE / "kang.toml")
    tables = {
        "model": recipe.model | change.get("model", {}),
        "training": recipe.training | {"max_steps": steps} | change.get("training", {}),
    }
    model = PerturbDiff.from_recipe(recipe.model_copy(update=tables), folder=data)
    with tempfile.TemporaryDirectory() as run:
        model.train(run=run, seed=seed, device="cpu", show_progress=False)
        with (Path(run) / "logs" / "metrics.csv").open() as file:
            return [float(row["validation energy"]) for row in csv.DictReader(file) if row["validation energy"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = ["| setting | best validation energy (range) | last validation energy (range) |", "|---|---|---|"]
    rows = []
    for name, change in CHANGES.items():
        curves = [curve(arguments.data.resolve(), seed, change, arguments.steps) for seed in arguments.seeds]
        best, last = [min(one) for one in curves], [one[-1] for one in curves]
        cells = [f"{statistics.fmean(x):.3f} ({min(x):.3f}-{max(x):.3f})" for x in (best, last)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
        rows.append({"setting": name, "change": change, "seeds": arguments.seeds, "curves": curves})
        print(lines[-1], flush=True)
        text = "\n".join(lines)
        head = f"Kang, CD8 T cells (validation), {arguments.steps} steps, seeds {arguments.seeds}; lower is better."
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "choices.md").write_text(f"# One setting changed at a time\n\n{head}\n\n{text}\n")
        (HERE / "results" / "choices.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
