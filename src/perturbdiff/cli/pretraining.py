"""Commands that begin a model, or go on from one: pretrain, finetune."""

from pathlib import Path
from typing import Annotated

import typer

from perturbdiff.cli.training import finish, keep_recipe
from perturbdiff.options import Device, MaxSteps, OptionalSeed, Overwrite, Quiet
from perturbdiff.screen import Screen


def pretrain(
    mixture: Annotated[Path, typer.Argument(help="A mixture of sources (.toml), a recipe, or a store.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command resumes it.")],
    *,
    max_steps: MaxSteps = None,
    seed: OptionalSeed = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Pretrain on unlabelled cells of several sources; the same command resumes, and fails where held-out cells train.

    Under torchrun or srun all processes train one model together.
    """
    from perturbdiff.io import check_writable
    from perturbdiff.pretraining import pretrain as pretrain_on
    from perturbdiff.training.processes import processes

    screen = Screen(quiet=quiet or processes().rank > 0)
    check_writable(out / "model.json", overwrite=True)
    model = pretrain_on(
        mixture,
        run=out,
        max_steps=max_steps,
        seed=seed,
        overwrite=overwrite,
        device=device,
        show_progress=not screen.quiet,
    )
    finish(model, out, screen)


def finetune(
    pretrained: Annotated[Path, typer.Argument(help="Folder of a pretrained model.")],
    recipe: Annotated[Path, typer.Argument(help="A recipe (.toml), or a store.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command resumes it.")],
    *,
    max_steps: MaxSteps = None,
    seed: OptionalSeed = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train on perturbations from a pretrained model, and print what is kept of it; the same command resumes.

    The table [finetuning] of the recipe says what is kept, frozen and learned slowly.
    """
    from perturbdiff.io import check_writable, run_lock
    from perturbdiff.model import PerturbDiff
    from perturbdiff.store.open import recipe_at
    from perturbdiff.training.processes import processes

    first = processes().rank == 0
    screen = Screen(quiet=quiet or not first)
    before = PerturbDiff.load(pretrained)
    read, folder = recipe_at(recipe)
    with run_lock(out, first=first):
        check_writable(out / "model.json", overwrite=True)
        model = PerturbDiff.from_recipe(read, folder=folder)
        model.train(
            run=out,
            max_steps=max_steps,
            seed=seed,
            pretrained=before,
            overwrite=overwrite,
            device=device,
            show_progress=not screen.quiet,
        )
        if first:
            keep_recipe(model.recipe, folder, out)
    finish(model, out, screen)
