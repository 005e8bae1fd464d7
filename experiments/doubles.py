"""Two genes activated at once, whose singles are measured: each double held out, one at a time.

    python experiments/doubles.py --data ../shared/data --seeds 0 1 2

Five doubles have both singles in the data. Each is a test perturbation once; two other doubles with a single measured
validate (which weights are kept). Beside the model: the sum of the singles' shifts (additive), their mean, the mean of
the trained perturbations, and unchanged controls. Results: experiments/results/doubles.md."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch

from common import (
    METRICS,
    groups_of,
    judged,
    markdown,
    on_panel,
    parsed,
    predicted_cells,
    record,
    shifted,
    summary,
    trained_shifts,
)
from perturbdiff import PerturbDiff, read_recipe

HERE = Path(__file__).parent
DOUBLES = ["KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2"]
MODALITY = "|CRISPRa"


def trained(data: Path, double: str, seed: int) -> PerturbDiff:
    """A model that has not seen a double; two of the other four validate, which it has not seen either."""
    others = [one for one in DOUBLES if one != double]
    place = DOUBLES.index(double)
    validation = [others[place % 4], others[(place + 2) % 4]]
    rules = [
        {"part": "test", "perturbation": [double + MODALITY]},
        {"part": "validation", "perturbation": [one + MODALITY for one in validation]},
    ]
    model = PerturbDiff.from_recipe(read_recipe(HERE / "norman.toml"), folder=data)
    return model.train(hold_out=rules, seed=seed, device="cpu", show_progress=False)


def one(data: Path, double: str, seed: int) -> pd.DataFrame:
    """All methods on one double."""
    torch.set_num_threads(1)
    model = trained(data, double, seed)
    cells, label = model.source, double + MODALITY
    split = model.split(model.recipe.hold_out, seed=seed)
    genes, groups = list(model.trained.genes), groups_of(cells, [label])
    shifts = trained_shifts(cells.take(split.rows("train")), genes)
    first, second = (shifts.loc[gene + MODALITY].to_numpy() for gene in double.split("+"))
    baselines = {
        "sum of the singles": first + second,
        "mean of the singles": (first + second) / 2,
        "mean of the trained perturbations": shifts.mean(axis=0).to_numpy(),
    }
    predicted = {"perturbdiff": predicted_cells(model, groups, cells, seed)}
    predicted |= {name: shifted({label: shift}, groups, cells, genes, seed) for name, shift in baselines.items()}
    found = judged(predicted, on_panel(cells, genes), seed)
    return found.assign(seed=seed, kept_step=model.trained.history["step"])


def main() -> None:
    arguments = parsed(__doc__, HERE, data=True)
    tasks = [(arguments.data, double, seed) for seed in arguments.seeds for double in DOUBLES]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        rows = pd.concat(pool.map(one, *zip(*tasks, strict=True)))
    kept = rows[["perturbation", "seed", "kept_step"]].drop_duplicates()
    text = (
        f"# Doubles whose singles are measured\n\n{__doc__.split(chr(10) * 2)[0]} Means over {len(DOUBLES)} doubles, "
        f"then the mean over seeds {arguments.seeds} (range).\n\n{markdown(summary(rows, ['method']))}\n\n"
        f"One by one:\n\n{markdown(summary(rows, ['perturbation', 'method'], METRICS[:3]))}\n\n"
        f"Steps of the kept weights (0: the start, which is the additive shift): {sorted(kept['kept_step'].tolist())}\n"
    )
    record("doubles", text, rows[rows["metric"].isin(METRICS)], arguments.out)
    print(text)


if __name__ == "__main__":
    main()
