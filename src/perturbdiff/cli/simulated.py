"""The demonstration: demo."""

from pathlib import Path
from typing import Annotated

import typer

from perturbdiff.options import INTERRUPTED, Device, Quiet, Seed
from perturbdiff.screen import Screen


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    *,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Simulate, train, predict held-out conditions, evaluate: with no data and no network."""
    from perturbdiff.demo import SETTINGS, run_demo

    screen = Screen(quiet=quiet)
    n_judged = 0
    for setting, comparison in run_demo(out, seed=seed, device=device, show_progress=not quiet):
        n_judged += 1
        screen.out.print(f"{setting}:", markup=False)
        screen.table(comparison.summary().T.reset_index(), as_json=False)
        for note in comparison.notes:
            screen.say(note)
    if n_judged < len(SETTINGS):
        raise typer.Exit(INTERRUPTED)
    screen.say(f"{str(out)!r} holds the data, the models, the predictions, the tables and the figures.")
