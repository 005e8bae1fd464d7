"""The figure of experiments/results/pretraining.json: zero-shot over the steps, and energy distance over cells.

python experiments/pretraining_figure.py --out docs/images/pretraining.png"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

HERE = Path(__file__).parent
COLOURS = {"cell": "#D55E00", "counts": "#0072B2", "residual": "#009E73", "residual, shrunk": "#009E73"}
LINES = {"scratch": ("--", "white"), "fine-tuned": ("-", None)}


def over_steps(axes: Axes, rows: pd.DataFrame, metric: str, label: str) -> None:
    """A metric of zero-shot predictions over the steps of pretraining, beside control cells."""
    rows = rows[(rows["data"] == "kang, zero-shot") & (rows["metric"] == metric)]
    for target, own in rows[rows["method"] == "zero-shot"].groupby("target"):
        _line(axes, own.assign(step=own["step"].astype(int)), "step", COLOURS[str(target)], "-", None, f'"{target}"')
    axes.axhline(rows.loc[rows["method"] == "control", "value"].mean(), color="0.5", ls=":", label="control")
    axes.set(xlabel="steps of pretraining", ylabel=label)


def over_cells(axes: Axes, rows: pd.DataFrame, data: str, title: str) -> None:
    """The energy distance over the perturbed cells that train, from scratch and fine-tuned."""
    rows = rows[(rows["data"] == data) & (rows["metric"] == "energy_distance")]
    amounts = list(dict.fromkeys(rows["cells"]))
    rows = rows.assign(place=rows["cells"].map(amounts.index))
    for target, colour in COLOURS.items():
        for method, (line, face) in LINES.items():
            own = rows[(rows["target"] == target) & (rows["method"] == method)]
            _line(axes, own, "place", colour, line, face, f"{target}, {method}")
    axes.axhline(rows.loc[rows["method"] == "control", "value"].mean(), color="0.5", ls=":", label="control")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set(xlabel=title, ylabel="energy distance", xticks=range(len(amounts)), xticklabels=amounts)


def _line(axes: Axes, rows: pd.DataFrame, x: str, colour: str, line: str, face: str | None, label: str) -> None:
    """The mean over seeds, and their range."""
    found = rows.groupby(x)["value"].agg(["mean", "min", "max"])
    axes.plot(found.index, found["mean"], line, color=colour, marker="o", mfc=face or colour, ms=5, label=label)
    axes.fill_between(found.index, found["min"], found["max"], color=colour, alpha=0.15, lw=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = pd.read_json(HERE / "results" / "pretraining.json", orient="split", dtype={"cells": str, "step": str})
    figure, axes = plt.subplots(2, 2, figsize=(9.6, 7.6), layout="constrained")
    over_steps(axes[0, 0], rows, "r2_of_means", "R2 of means")
    over_steps(axes[0, 1], rows, "energy_distance", "energy distance")
    over_cells(axes[1, 0], rows, "kang", "stimulated cells (PBMC)")
    over_cells(axes[1, 1], rows, "papalexi", "cells of each knock-out (THP-1)")
    axes[0, 0].legend(title="zero-shot, target", fontsize=8)
    handles = axes[1, 0].get_legend_handles_labels()
    figure.legend(*handles, title="target, training", fontsize=8, ncols=4, loc="outside lower center")
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
