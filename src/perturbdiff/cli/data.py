"""Commands on data: recipes, split, prepare."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perturbdiff.cli.options import Json, OptionalSeed, Overwrite, Quiet
from perturbdiff.cli.screen import Screen

if TYPE_CHECKING:
    from perturbdiff.split.rules import Split
    from perturbdiff.store.plan import Plan


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one; without it, the names.")] = None,
    *,
    out: Annotated[Path | None, typer.Option(help="Write it to this file instead, to be changed.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """List the recipes that come with the package, print one, or copy it beside your data."""
    import pandas as pd

    from perturbdiff.io import check_writable, whole_file
    from perturbdiff.recipes import catalogue
    from perturbdiff.recipes.dataset import read_recipe

    screen = Screen(quiet=False)
    if name is None:
        if out is not None:
            raise ValueError(f"--out {str(out)!r} is given without a recipe's name; name one of those that are listed.")
        table = pd.DataFrame([(known, read_recipe(catalogue.path(known)).about) for known in catalogue.names()])
        screen.table(table.set_axis(["name", "about"], axis=1), as_json=False)
        return
    text = catalogue.path(name).read_text(encoding="utf-8")
    if out is None:
        screen.out.print(text, markup=False, end="")
        return
    check_writable(out, overwrite=overwrite)
    with whole_file(out) as partial:
        partial.write_text(text, encoding="utf-8")
    screen.say(f"{str(out)!r} is the recipe {name!r}; its files are looked for beside it.")


def prepare(
    recipe: Annotated[Path, typer.Argument(help="A recipe (.toml).")],
    *,
    out: Annotated[Path, typer.Option(help="The store to make; the same command goes on where it was interrupted.")],
    memory: Annotated[float, typer.Option(help="GiB of memory to take at most.", min=0)] = 2.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and do nothing.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make one store of all files of a recipe, to train on data larger than memory."""
    from perturbdiff.recipes.dataset import read_recipe
    from perturbdiff.store.build import build_store
    from perturbdiff.store.plan import plan_store

    screen = Screen(quiet=quiet)
    known, folder, most = read_recipe(recipe), recipe.resolve().parent, int(memory * 2**30)
    if dry_run:
        plan = plan_store(known, folder, out, memory=most)
        if as_json:
            screen.out.print_json(json.dumps(asdict(plan)))
        else:
            screen.facts(_facts(plan))
        return
    if as_json:
        raise ValueError("--json prints the plan of --dry-run; give both, or neither.")
    build_store(known, folder, out, memory=most, overwrite=overwrite, track=screen.track)
    screen.say(f'train on it with files = ["{out.name}"] in a recipe beside it, or by its name in place of a recipe.')


def split(
    recipe: Annotated[Path, typer.Argument(help="A recipe (.toml), or a store.")],
    *,
    cells: Annotated[
        str | None,
        typer.Option(
            help="List the cells of this part instead, as CSV: train, validation, test; no leak is looked for."
        ),
    ] = None,
    seed: OptionalSeed = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Print what a recipe holds out, and every leak found; exit status 1 on a leak."""
    from perturbdiff.labels.members import grammar_of
    from perturbdiff.model import PerturbDiff
    from perturbdiff.split.audit import LOOKED_FOR, find_leaks
    from perturbdiff.split.rules import check_part

    screen = Screen(quiet=quiet)
    if cells is not None:
        if as_json:
            raise ValueError("--cells lists cells as CSV, and --json prints the split; give one of them.")
        check_part(cells)
    model = PerturbDiff.from_recipe(recipe)
    found = model.split(seed=seed)
    if cells is not None:
        _list_cells(found, cells)
        return
    m = model.recipe.settings.training.cells_per_population
    leaks = find_leaks(found, grammar_of(model.recipe))
    if as_json:
        held_out = {part: found.groups(part).to_dict(orient="records") for part in ("validation", "test")}
        parts = found.table(m).reset_index().to_dict(orient="records")
        facts = {
            "hash": found.hash,
            "parts": parts,
            "held_out": held_out,
            "notes": [*found.source.notes, *found.notes],
            "looked_for": LOOKED_FOR,
            "leaks": leaks,
        }
        screen.out.print_json(json.dumps(facts))
    else:
        screen.table(found.table(m).reset_index(), as_json=False)
        for part in ("validation", "test"):
            groups = found.groups(part)
            if len(groups):
                screen.out.print(f"held out for {part}:")
                screen.table(groups, as_json=False)
        screen.out.print(f"hash {found.hash}")
        for note in (*found.source.notes, *found.notes):
            screen.say(note)
        for leak in leaks:
            screen.out.print(f"leak: {leak}", markup=False)
        screen.say(f"{_found(leaks)}; looked for {', '.join(LOOKED_FOR[:-1])} and {LOOKED_FOR[-1]}.")
    if leaks:
        raise typer.Exit(1)


def _list_cells(found: "Split", part: str) -> None:
    """Write the cells of a part to standard output, in the canonical order."""
    header = True
    for table in found.cells(part):
        table.to_csv(sys.stdout, index=False, header=header, lineterminator="\n")
        header = False
    if header:
        sys.stdout.write("cell,perturbation,cell_type,assay_batch\n")


def _found(leaks: list[str]) -> str:
    return f"{len(leaks) or 'no'} {'leaks' if len(leaks) > 1 else 'leak'} found"


def _facts(plan: "Plan") -> dict[str, str]:
    from perturbdiff.io import sized

    labels = ", ".join(f"{count:,} of {name}" for name, count in plan.n_labels.items())
    return {
        "cells": f"{plan.n_cells:,} in {plan.n_files:,} files",
        "conditions": f"{plan.n_runs:,} ({labels})",
        "genes": f"{plan.n_genes:,} ({', '.join(f'{count:,}' for count in dict.fromkeys(plan.file_genes))} in a file)",
        "store": f"about {sized(plan.store_bytes)}",
        "besides": f"about {sized(plan.temporary_bytes)} while it is made; {sized(plan.free_bytes)} are free",
        "time": f"about {plan.minutes:.1f} minutes",
    } | {"note" if i == 0 else f"note {i + 1}": note for i, note in enumerate(plan.notes)}
