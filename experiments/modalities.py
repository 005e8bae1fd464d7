"""One gene under two modalities: activations that training has not seen, of genes whose interference it has.

    python experiments/modalities.py --seeds 0 1 2

Twelve simulated genes, each under CRISPRi and CRISPRa; nine tenths of a gene's programme are shared, with the opposite
sign. The activations of three genes are test perturbations, those of two others validate (which weights are kept).
Three models see the same cells: one reads gene and modality as parts of a label ("gene and modality"); one reads the
label as a whole, and can only be asked for its trained null; one has the genes' features and no parts of labels, so
that the modality is lost on it ("features of genes alone"). Beside them: the mean of the trained activations, the
gene's interference with the opposite sign, and unchanged controls. The truth is the simulator's.
Results: experiments/results/modalities.md."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from common import markdown, measured_change, parsed, predicted_change, record, spread
from perturbdiff import PerturbDiff
from perturbdiff.simulation.responses import simulate_modalities

HERE = Path(__file__).parent
N_GENES, TEST, VALIDATION = 12, (1, 2, 3), (4, 5)
TRAINING = {"max_steps": 400, "validate_every": 50, "cells_per_population": 30, "populations_per_batch": 8}
MODELS = {
    "perturbdiff, gene and modality": {"grammar": {"modality_separator": "|"}},
    "perturbdiff, labels as a whole (null)": {},
    "perturbdiff, features of genes alone": {"alone": True},
}


def trained(adata: AnnData, seed: int, options: dict) -> PerturbDiff:
    """A model that has not seen the held-out activations."""
    options, knows_parts = dict(options), bool(options)
    if not knows_parts:  # who knows whole labels only can't be asked about others: they are left out, not held out
        adata = adata[~adata.obs["perturbation"].isin([f"gene_{gene}|CRISPRa" for gene in TEST])].copy()
    if options.pop("alone", False):
        features = adata.uns["features"]
        whole = [label for label in adata.obs["perturbation"].unique() if label != "control"]
        options["features"] = {
            "perturbation": pd.DataFrame([features.loc[label.split("|")[0]] for label in whole], index=whole)
        }
    model = PerturbDiff.from_anndata(
        adata,
        perturbation="perturbation",
        control="control",
        cell_type="cell_type",
        n_genes=None,
        training=TRAINING,
        **options,
    )
    rules = [
        {"part": part, "perturbation": [f"gene_{gene}|CRISPRa" for gene in genes]}
        for part, genes in (("test", TEST if knows_parts else ()), ("validation", VALIDATION))
        if genes
    ]
    return model.train(hold_out=rules, seed=seed, device="cpu", show_progress=False)


def one(seed: int) -> pd.DataFrame:
    """All methods on one simulated data set."""
    torch.set_num_threads(1)
    adata = simulate_modalities(n_genes_perturbed=N_GENES, seed=seed)
    truth = adata.uns["truth"]
    effect = dict(zip(map(str, truth["conditions"]), np.asarray(truth["effect"]), strict=True))
    controls = adata[adata.obs["perturbation"] == "control"].copy()
    seen = [f"gene_{gene}|CRISPRa" for gene in range(1, N_GENES + 1) if gene not in (*TEST, *VALIDATION)]
    mean = np.mean([measured_change(adata, adata.obs["perturbation"] == label) for label in seen], axis=0)
    found: dict[tuple[str, str], np.ndarray] = {}
    for name, options in MODELS.items():
        model = trained(adata, seed, options)
        for gene in TEST:
            label = f"gene_{gene}|CRISPRa"
            found[name, label] = predicted_change(model, controls, label if options else None, seed)
    for gene in TEST:
        label = f"gene_{gene}|CRISPRa"
        found["mean of the trained activations", label] = mean
        found["its interference, opposite sign", label] = -measured_change(
            adata, adata.obs["perturbation"] == f"gene_{gene}|CRISPRi"
        )
        found["control", label] = np.zeros_like(mean)
    rows = []
    for (name, label), change in found.items():
        wanted = effect[label]
        rows.append((name, label, "error", float(np.linalg.norm(change - wanted) / np.linalg.norm(wanted))))
        if change.any():
            rows.append((name, label, "pearson", float(np.corrcoef(change, wanted)[0, 1])))
    return pd.DataFrame(rows, columns=["method", "perturbation", "metric", "value"]).assign(seed=seed)


def main() -> None:
    arguments = parsed(__doc__, HERE, data=False)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        rows = pd.concat(pool.map(one, arguments.seeds))
    means = rows.groupby(["method", "metric", "seed"], sort=False)["value"].mean().reset_index()
    spreads = means.groupby(["method", "metric"], sort=False)["value"].agg(spread).reset_index()
    table = spreads.pivot_table(index="method", columns="metric", values="value", aggfunc="first", sort=False)
    table = table.rename(columns={"error": "error of the mean change", "pearson": "Pearson of change"}).fillna("")
    text = (
        f"# One gene under two modalities\n\n{__doc__.split(chr(10) * 2)[0]} Error relative to the length of the true "
        f"change, means over {len(TEST)} genes, then over seeds {arguments.seeds} (range).\n\n{markdown(table)}\n"
    )
    record("modalities", text, rows, arguments.out)
    print(text)


if __name__ == "__main__":
    main()
