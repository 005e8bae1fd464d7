"""The command demo, the main job on simulated data: simulate, train, predict held-out conditions, evaluate, draw.

Two settings of `simulation.screen` are run. In "interaction" the response depends on what the control cells of a type
show, so carrying the mean shift of other types over is not enough; in "additive" that is exactly right, and the model
can only come near it. In both, two perturbations are held out in the last cell type for the test, and in the one before
it for validation.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from perturbdiff.cli.options import INTERRUPTED, Device, Quiet, Seed
from perturbdiff.cli.screen import Screen

if TYPE_CHECKING:
    from perturbdiff.recipes.dataset import Recipe
    from perturbdiff.results.evaluation import Evaluation

_LOG = logging.getLogger(__name__)

Setting = Literal["interaction", "additive"]

SETTINGS: tuple[Setting, ...] = ("interaction", "additive")

TRAINING: dict[str, Any] = {"max_steps": 1000, "validate_every": 50}
"""What the demo changes in the settings of the preset "tiny"."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    *,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Simulate, train, predict held-out conditions, evaluate: with no data and no network."""
    screen = Screen(quiet=quiet)
    n_judged = 0
    for setting, evaluation in run_demo(out, seed=seed, device=device, show_progress=not quiet):
        n_judged += 1
        screen.out.print(f"{setting}:", markup=False)
        screen.table(evaluation.summary().T.reset_index(), as_json=False)
        for note in evaluation.notes:
            screen.say(note)
    if n_judged < len(SETTINGS):
        raise typer.Exit(INTERRUPTED)
    screen.say(f"{str(out)!r} holds the data, the models, the predictions, the tables and the figures.")


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    show_progress: bool = True,
    training: dict[str, Any] | None = None,
) -> "Iterator[tuple[Setting, Evaluation]]":
    """Run both settings into `out`, one evaluation each; an interrupted demo resumes with the same call.

    Args:
        out: folder; each setting gets one of its own in it.
        seed: of the simulation, the training and the prediction.
        device: "auto", "cpu", "cuda".
        show_progress: whether to draw progress bars.
        training: settings in place of `TRAINING`.
    """
    from perturbdiff.io import write_h5ad
    from perturbdiff.prediction.inputs import torch_device
    from perturbdiff.recipes.dataset import write_recipe
    from perturbdiff.simulation.screen import simulate

    torch_device(device)
    for setting in SETTINGS:
        folder = out / setting
        folder.mkdir(parents=True, exist_ok=True)
        _LOG.info(f"{setting}: simulating.")
        observed = folder / "observed.h5ad"
        write_h5ad(simulate(setting, seed=seed), observed)
        recipe = demo_recipe(observed.name, {"seed": seed, **(training or TRAINING)})
        write_recipe(recipe, folder / "recipe.toml")
        evaluation = _train_and_judge(folder, observed, seed=seed, device=device, progress=show_progress)
        if evaluation is None:
            _LOG.info("interrupted: the same call resumes.")
            return
        yield setting, evaluation


def demo_recipe(file: str, training: dict[str, Any]) -> "Recipe":
    """What is held out: stimulus_1 and stimulus_2, in the last type for the test, in the one before for validation."""
    from perturbdiff.recipes.dataset import recipe_from_mapping

    last = ["type_6"]
    return recipe_from_mapping(
        {
            "name": "demo",
            "about": "Simulated counts: 6 cell types, 3 donors, 4 perturbations.",
            "control": "control",
            "files": [file],
            "columns": {"perturbation": "perturbation", "cell_type": "cell_type", "assay_batch": "assay_batch"},
            "expression": {"scale": "counts"},
            "hold_out": [
                {"part": "test", "perturbation": ["stimulus_1", "stimulus_2"], "cell_type": last},
                {"part": "validation", "perturbation": ["stimulus_1", "stimulus_2"], "cell_type": ["type_5"]},
            ],
            "model": {"preset": "tiny"},
            "training": training,
        },
        "the demo",
    )


def _train_and_judge(folder: Path, observed: Path, *, seed: int, device: str, progress: bool) -> "Evaluation | None":
    """The evaluation of one setting; None where its training was interrupted."""
    from perturbdiff.cells.anndata import read_cells
    from perturbdiff.evaluation.from_files import evaluate_files
    from perturbdiff.figures.dot_plot import figure, save_figure
    from perturbdiff.io import write_h5ad
    from perturbdiff.model import PerturbDiff
    from perturbdiff.prediction.conditions import held_out_conditions
    from perturbdiff.recipes.dataset import read_recipe
    from perturbdiff.training_data import TrainingData

    recipe = read_recipe(folder / "recipe.toml")
    cells = read_cells(recipe, folder)
    model = PerturbDiff(recipe, source=cells, folder=folder)
    model.train(run=folder / "run", device=device, show_progress=progress)
    if model.outcome is None or model.outcome.interrupted:
        return None
    held_out = held_out_conditions(model.trained)
    predicted = model.predict_cells(cells, conditions=held_out, seed=seed, device=device)
    write_h5ad(predicted, folder / "predicted.h5ad")
    _LOG.info("evaluating.")
    evaluation = evaluate_files(
        {"perturbdiff": folder / "predicted.h5ad"}, observed, source=TrainingData.of_run(folder / "run"), seed=seed
    )
    evaluation.save(folder)
    save_figure(figure(evaluation.table, title=f"simulated, {folder.name}"), folder / "figure.png")
    return evaluation
