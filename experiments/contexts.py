"""IFN-beta in a cell type that training has not seen it in: six types of Kang et al., each held out in turn.

    python experiments/contexts.py --data ../shared/data --seeds 0 1 2

All 940 genes; the type under test is held out under IFN-beta, and B cells validate (CD8 T cells where B cells are under
test). Every donor is judged apart, from the donor's own control cells. Beside the model: its step 0, which is what is
expected by similar contexts, drawn as counts; the same on log1p values (target = "residual"), trained and at step 0;
baselines in the better of both ways (those that are not here, such as ridge, are the mean shift where there is one
perturbation); unchanged control cells; and the ceiling, halves of the observed cells.
Results: experiments/results/contexts.md."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch

from common import (
    METRICS,
    judged_beside,
    margins,
    markdown,
    parsed,
    predicted_cells,
    record,
    start_of,
    summary,
)
from perturbdiff import PerturbDiff, read_recipe
from perturbdiff.recipes.dataset import Recipe

HERE = Path(__file__).parent
TYPES = ("B cells", "CD14+ Monocytes", "CD4 T cells", "CD8 T cells", "FCGR3A+ Monocytes", "NK cells")
SHOWN = [*METRICS, "variance_ratio", "zeros_predicted", "zeros_observed"]
BASELINES = ("control + mean shift", "kernel ridge", "nearest cell type", "similar contexts")
SMALLEST = 10
"""Cells of a donor and type under IFN-beta that are enough to be judged."""


def recipes() -> dict[str, Recipe]:
    """What is trained, by name."""
    recipe = read_recipe(HERE / "kang.toml")
    recipe = recipe.model_copy(update={"training": {**recipe.training, "max_steps": 200}})
    logs = recipe.model_copy(update={"model": {**recipe.model, "target": "residual"}})
    return {
        "perturbdiff": recipe,
        "step 0": start_of(recipe),
        "on log1p values": logs,
        "on log1p values, step 0": start_of(logs),
    }


def one(data: Path, held_out: str, seed: int) -> pd.DataFrame:
    """All methods on one cell type."""
    torch.set_num_threads(1)
    rules = [
        {"part": part, "perturbation": ["IFN-beta"], "cell_type": [cell_type]}
        for part, cell_type in (("test", held_out), ("validation", TYPES[3] if held_out == TYPES[0] else TYPES[0]))
    ]
    made, steps = {}, {}
    for name, recipe in recipes().items():
        model = PerturbDiff.from_recipe(recipe, folder=data)
        model.train(hold_out=rules, seed=seed, device="cpu", show_progress=False)
        split = model.split(rules, seed=seed)
        groups = split.groups("test")
        made[name] = predicted_cells(model, groups[groups["cells"] >= SMALLEST], model.source, seed)
        steps[name] = model.trained.history["step"]
    found = judged_beside(made, model.source, split, list(model.trained.genes), seed, BASELINES)
    return found.assign(seed=seed, kept_step=steps["perturbdiff"])


def main() -> None:
    arguments = parsed(__doc__, HERE, data=True)
    tasks = [(arguments.data, held_out, seed) for seed in arguments.seeds for held_out in TYPES]
    tables = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for task, table in zip(tasks, pool.map(one, *zip(*tasks, strict=True)), strict=True):
            tables.append(table)
            print(task[1:], markdown(summary(table, ["method"], SHOWN)), sep="\n", flush=True)
    rows = pd.concat(tables)
    kept = (
        rows[["cell_type", "seed", "kept_step"]]
        .drop_duplicates()
        .pivot_table(index="cell_type", columns="seed", values="kept_step")
    )
    apart = [
        f"{metric}: {margins(rows, 'perturbdiff', metric, unit='cell_type')}."
        for metric in ("energy_distance", "pearson_of_change", "mae", "de_auroc")
    ]
    text = (
        f"# A response in unseen cell types\n\n{__doc__.split(chr(10) * 2)[0]} Every donor judged apart; means over "
        f"donors, over {len(TYPES)} types, then the mean over seeds {arguments.seeds} (range).\n\n"
        f"{markdown(summary(rows, ['method'], SHOWN))}\n\n"
        "Less that of perturbdiff, the mean over types and seeds (95 % interval over the types):\n\n"
        + "\n\n".join(apart)
        + f"\n\nType by type:\n\n{markdown(summary(rows, ['cell_type', 'method'], SHOWN[:4]))}\n\n"
        f"Steps of the kept weights, by type and seed:\n\n{markdown(kept.astype(int))}\n"
    )
    record("contexts", text, rows[rows["metric"].isin(SHOWN)], arguments.out)
    print(text)


if __name__ == "__main__":
    main()
