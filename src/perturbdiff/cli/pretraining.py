"""Commands that begin a model, or go on from one: pretrain, finetune."""

from pathlib import Path
from typing import Annotated, Any

import typer

from perturbdiff.cli.options import Device, MaxSteps, OptionalSeed, Overwrite, Quiet
from perturbdiff.cli.screen import Screen
from perturbdiff.cli.training import finish, trained


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
    from perturbdiff.model import PerturbDiff
    from perturbdiff.store.open import recipe_at
    from perturbdiff.training.processes import processes

    screen = Screen(quiet=quiet or processes().rank > 0)
    changed: dict[str, Any] = {"pretrained": PerturbDiff.load(pretrained), "max_steps": max_steps, "seed": seed}
    model = trained(*recipe_at(recipe), out, screen, overwrite=overwrite, device=device, **changed)
    finish(model, out, screen)
