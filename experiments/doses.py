"""A simulated dose series with a Hill response: predicted at doses that training has not seen.

    python experiments/doses.py --seeds 0 1 2

Six drugs at 0.01, 0.1, 1 and 10 uM train, 0.3 uM validates (which weights are kept). The predicted change of the mean
is held against the simulator's curve at the trained doses, between, below and above them: root mean square error over
genes, over the root mean square of the drug's whole programme. Beside the model: linear in the logarithm of the dose
between the measured changes, the measured change at the nearest dose (at a trained dose: what counting noise leaves),
and no change.
Results: experiments/results/doses.md."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from common import markdown, measured_change, parsed, predicted_change, record, spread
from perturbdiff import PerturbDiff
from perturbdiff.simulation.responses import simulate_doses, true_change

HERE = Path(__file__).parent
TRAINED, VALIDATION = (0.01, 0.1, 1.0, 10.0), 0.3
BETWEEN = (0.02, 0.03, 0.05, 0.2, 0.5, 2.0, 3.0, 5.0)
DOSES = {"trained": TRAINED, "between": BETWEEN, "below": (0.003, 0.005), "above": (20.0, 30.0)}


def trained(seed: int) -> tuple[AnnData, PerturbDiff]:
    """A simulated data set, and a model of it."""
    adata = simulate_doses(doses=(*TRAINED, VALIDATION), seed=seed)
    model = PerturbDiff.from_anndata(
        adata,
        perturbation="perturbation",
        control="control",
        cell_type="cell_type",
        dose="dose",
        dose_unit="dose_unit",
        n_genes=None,
        training={"max_steps": 400, "validate_every": 50, "cells_per_population": 32, "populations_per_batch": 8},
    )
    drugs = sorted(set(adata.obs["perturbation"]) - {"control"})
    held = [f"[('{drug}', {VALIDATION:g}, 'uM')]" for drug in drugs]
    model.train(hold_out=[{"part": "validation", "perturbation": held}], seed=seed, device="cpu", show_progress=False)
    return adata, model


def one(seed: int) -> pd.DataFrame:
    """The errors of all methods on one simulated data set."""
    torch.set_num_threads(1)
    adata, model = trained(seed)
    drugs = sorted(set(adata.obs["perturbation"]) - {"control"})
    controls = adata[adata.obs["perturbation"] == "control"].copy()
    rows = []
    given = adata.obs["dose"].to_numpy(float)
    measured = {
        drug: {
            dose: measured_change(adata, (adata.obs["perturbation"] == drug) & np.isclose(given, dose))
            for dose in TRAINED
        }
        for drug in drugs
    }
    for where, doses in DOSES.items():
        for drug in drugs:
            scale = np.sqrt(np.mean(np.square(true_change(adata, drug, 1e6))))
            for dose in doses:
                truth = true_change(adata, drug, dose)
                methods = {
                    "perturbdiff": predicted_change(model, controls, drug, seed, dose=dose, dose_unit="uM"),
                    "linear in log dose": interpolated(measured[drug], dose),
                    "nearest trained dose": measured[drug][min(TRAINED, key=lambda d: abs(np.log(d / dose)))],
                    "no change": np.zeros_like(truth),
                }
                for name, change in methods.items():
                    error = np.sqrt(np.mean(np.square(change - truth))) / scale
                    rows.append((name, where, drug, dose, "error", float(error)))
    for drug in drugs:
        series = model.dose_response(
            controls,
            drug,
            sorted({*TRAINED, *BETWEEN}),
            unit="uM",
            seed=seed,
            device="cpu",
        )
        rows.append(("perturbdiff", "all", drug, 0.0, "doses at which it falls", float(series["falls"].sum())))
    columns = ["method", "where", "drug", "dose", "metric", "value"]
    return pd.DataFrame(rows, columns=columns).assign(seed=seed, kept_step=model.trained.history["step"])


def interpolated(measured: dict[float, np.ndarray], dose: float) -> np.ndarray:
    """Linear in log dose; constant beyond the ends."""
    known = np.log(sorted(measured))
    table = np.stack([measured[d] for d in sorted(measured)])
    return np.array([np.interp(np.log(dose), known, column) for column in table.T])


def main() -> None:
    arguments = parsed(__doc__, HERE, data=False)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        rows = pd.concat(pool.map(one, arguments.seeds))
    errors = rows[rows["metric"] == "error"]
    means = errors.groupby(["method", "where", "seed"], sort=False)["value"].mean().reset_index()
    spreads = means.groupby(["method", "where"], sort=False)["value"].agg(spread).reset_index()
    table = spreads.pivot_table(index="method", columns="where", values="value", aggfunc="first", sort=False)[
        list(DOSES)
    ]
    falling = rows[rows["metric"] != "error"].groupby("seed")["value"].sum().astype(int).tolist()
    n_doses = len({*TRAINED, *BETWEEN})
    steps = rows[["seed", "kept_step"]].drop_duplicates()["kept_step"].tolist()
    text = (
        f"# Doses that training has not seen\n\n{__doc__.split(chr(10) * 2)[0]} Error relative to the drug's whole "
        f"programme, means over drugs and doses, then over seeds {arguments.seeds} (range).\n\n{markdown(table)}\n\n"
        f"Between: {BETWEEN} uM; below: {DOSES['below']}; above: {DOSES['above']}; trained at {TRAINED}. "
        f"Doses at which the predicted response falls, of {n_doses} for each of six drugs: {falling} in each seed. "
        f"Steps of the kept weights: {steps}.\n"
    )
    record("doses", text, rows, arguments.out)
    print(text)


if __name__ == "__main__":
    main()
