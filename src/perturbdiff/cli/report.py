"""The command on an evaluation: report."""

from pathlib import Path
from typing import Annotated

import typer

from perturbdiff.cli.options import Overwrite, Quiet
from perturbdiff.cli.screen import Screen


def report(
    folder: Annotated[Path, typer.Argument(help="The folder that `evaluate` wrote.")],
    *,
    out: Annotated[Path, typer.Option(help="The .html to write; a .json and a .csv go beside it.")],
    against: Annotated[
        str | None, typer.Option(help="Method to compare with by condition; the strongest baseline when absent.")
    ] = None,
    condition: Annotated[
        str | None, typer.Option(help='Condition whose genes are shown first: "perturbation | cell type".')
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make one HTML page of an evaluation, which needs no network, and its numbers as JSON and CSV."""
    from perturbdiff.report.writing import files_of, write_report

    screen = Screen(quiet=quiet)
    made = write_report(folder, out, against=against, condition=condition, overwrite=overwrite)
    screen.out.print(made.summary.paragraph, markup=False)
    for kind, text in made.evaluation.warnings:
        screen.say(f"warning ({kind}): {text}")
    for sentence in made.evaluation.missing.values():
        screen.say(sentence)
    page, as_json, as_csv = map(str, files_of(out))
    screen.say(f"{page!r} is the report; {as_json!r} and {as_csv!r} hold its numbers.")
