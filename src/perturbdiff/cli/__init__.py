"""The command line: parse, call, print. Bad input is one sentence on standard error and exit status 2."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from perturbdiff.cli.baseline import baseline
from perturbdiff.cli.data import prepare, recipes, split
from perturbdiff.cli.demo import demo
from perturbdiff.cli.features import app as features_app
from perturbdiff.cli.judging import evaluate
from perturbdiff.cli.predicting import predict
from perturbdiff.cli.pretraining import finetune, pretrain
from perturbdiff.cli.report import report
from perturbdiff.cli.screen import sentence
from perturbdiff.cli.training import inspect, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Predict how a population of single cells responds to a perturbation.",
)
for command in (recipes, split, prepare, train, pretrain, finetune, inspect, predict, baseline, evaluate, report, demo):
    app.command()(command)
app.add_typer(features_app, name="features")


def main() -> None:
    """Run the command line; the entry point of `perturbdiff`."""
    try:
        app()
    except (ValueError, OSError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {sentence(error)}", markup=False)
        sys.exit(2)


def _print_version(value: bool) -> None:  # noqa: FBT001 - typer's callback
    if value:
        typer.echo(f"perturbdiff {version('perturbdiff')}")
        raise typer.Exit


@app.callback()
def root(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the program itself."""
