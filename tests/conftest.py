"""Fixtures shared by all tests: real data and golden tensors, random generators, a tiny screen and its trained run."""

import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from anndata import AnnData

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.cli import main
from perturbdiff.files.container import read_anndata
from perturbdiff.io import write_h5ad
from perturbdiff.model import PerturbDiff
from perturbdiff.recipes.dataset import Recipe, read_recipe, recipe_from_mapping, write_recipe
from perturbdiff.simulation.screen import simulate
from perturbdiff.training.module import DenoiserModule

SHARED = Path(__file__).parents[2] / "shared"


def _folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: this test reads files that are not part of the project")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real single-cell data."""
    return _folder("data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of tensors recorded from the authors' release."""
    return _folder("golden")


@pytest.fixture(scope="session")
def recipes() -> Path:
    """The folder of the paper's recipes."""
    return _folder("recipes")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@contextmanager
def _listening() -> Iterator[list[str]]:
    said: list[str] = []
    log, handler = logging.getLogger("perturbdiff"), logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield said
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@pytest.fixture(scope="session")
def listening() -> Callable[[], Any]:
    """A context whose list holds the sentences that the package logs in it."""
    return _listening


@pytest.fixture
def said() -> Iterator[list[str]]:
    """The sentences that the package logs during a test."""
    with _listening() as sentences:
        yield sentences


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models on many threads of a busy machine are slower by far than on one."""
    torch.set_num_threads(1)


TINY: dict[str, dict[str, Any]] = {
    "model": {"preset": "tiny", "width": 16, "depth": 1, "heads": 2, "embedding_width": 4, "times": 20},
    "training": {
        "max_steps": 4,
        "cells_per_population": 6,
        "populations_per_batch": 4,
        "warmup_steps": 1,
        "validate_every": 2,
        "validate_start": False,
        "validation_populations": 4,
        "precision": "float32",
    },
    "sampling": {"steps": 2},
}

HOLD_OUT = (
    {"part": "test", "perturbation": ["stimulus_1"], "cell_type": ["type_3"]},
    {"part": "validation", "perturbation": ["stimulus_2"], "cell_type": ["type_3"]},
)

COLUMNS = {"perturbation": "perturbation", "cell_type": "cell_type", "assay_batch": "assay_batch"}


@dataclass(frozen=True)
class Screen:
    """A tiny screen on disk, and the run of a model that was trained on it."""

    data: Path
    recipe: Path
    run: Path


@pytest.fixture(scope="session")
def adata() -> AnnData:
    """216 cells, 40 genes, 3 perturbations, 3 types, 2 donors; copy it before changing it."""
    return simulate(
        "interaction",
        n_genes=40,
        n_cell_types=3,
        n_assay_batches=2,
        n_perturbations=3,
        cells_per_group=8,
        control_cells_per_group=12,
        seed=0,
    )


@pytest.fixture(scope="session")
def tiny() -> Callable[..., dict[str, dict[str, Any]]]:
    """Settings of a model that trains in a moment, with changes: tiny(training={"seed": 1})."""
    return _tiny


def _tiny(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: table | changes.get(name, {}) for name, table in TINY.items()}


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., Recipe]:
    """The recipe of the tiny screen, with changes of settings (training=...) and of other keys (n_genes=...)."""

    def make(**changes: Any) -> Recipe:
        tables = _tiny(**{name: changes.pop(name) for name in TINY if name in changes})
        mapping = {
            "name": "screen",
            "control": "control",
            "files": ["screen.h5ad"],
            "columns": COLUMNS,
            "expression": {"scale": "counts"},
            "hold_out": list(HOLD_OUT),
        }
        return recipe_from_mapping(mapping | tables | changes, "the test")

    return make


@pytest.fixture(scope="session")
def make_model(adata: AnnData, make_recipe: Callable[..., Recipe]) -> Callable[..., PerturbDiff]:
    """An untrained model of the tiny screen in memory; changes as of `make_recipe`, `of` in place of its cells."""

    def make(*, of: AnnData | None = None, **changes: Any) -> PerturbDiff:
        recipe = make_recipe(**changes)
        cells = cells_from_anndata(
            adata if of is None else of, columns=recipe.columns, expression=recipe.expression, control=recipe.control
        )
        return PerturbDiff(recipe, source=cells)

    return make


@pytest.fixture(scope="session")
def screen(tmp_path_factory: pytest.TempPathFactory, adata: AnnData, make_recipe: Callable[..., Recipe]) -> Screen:
    """Shared by many tests, which must leave its files as they are."""
    folder = tmp_path_factory.mktemp("screen")
    adata.write_h5ad(folder / "screen.h5ad")
    write_recipe(make_recipe(n_genes=30), folder / "recipe.toml")
    model = PerturbDiff.from_recipe(folder / "recipe.toml")
    model.train(run=folder / "run", device="cpu", show_progress=False)
    return Screen(folder / "screen.h5ad", folder / "recipe.toml", folder / "run")


@pytest.fixture
def own_run(screen: Screen, tmp_path: Path) -> Path:
    """A copy of the trained run, to be changed."""
    return Path(shutil.copytree(screen.run, tmp_path / "own-run"))


@pytest.fixture(scope="session")
def predicted(screen: Screen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test condition of the shared run, predicted; to be left as it is."""

    path = tmp_path_factory.mktemp("cli") / "predicted.h5ad"
    model = PerturbDiff.load(screen.run)
    found = model.predict(read_anndata(screen.data), perturbation="stimulus_1", cell_type="type_3", device="cpu")
    write_h5ad(found, path)
    return path


@pytest.fixture
def changed(screen: Screen, adata: AnnData, tmp_path: Path) -> Callable[..., Path]:
    """A folder with the recipe and a changed copy of the cells: changed(lambda adata: ...) -> its recipe."""

    def make(change: Callable[[AnnData], AnnData | None], **recipe_changes: Any) -> Path:
        copy = adata.copy()
        copy = change(copy) or copy
        folder = tmp_path / "changed"
        folder.mkdir(exist_ok=True)
        copy.write_h5ad(folder / "screen.h5ad")
        recipe = read_recipe(screen.recipe)
        write_recipe(recipe.model_copy(update=recipe_changes), folder / "recipe.toml")
        return folder / "recipe.toml"

    return make


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Send this process signals in the middle of a training step: signal_at(3, SIGINT)."""

    def arrange(step: int, *signals: signal.Signals) -> None:
        original = DenoiserModule.training_step

        def training_step(module: DenoiserModule, batch: Any, batch_idx: int) -> torch.Tensor:
            if module.global_step == step:
                for number in signals:
                    os.kill(os.getpid(), number)
            return original(module, batch, batch_idx)

        monkeypatch.setattr(DenoiserModule, "training_step", training_step)

    return arrange


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    def refused(self, pattern: str) -> bool:
        """Whether it ended with status 2, no result, and one sentence on standard error that matches."""
        (line,) = self.err.strip().splitlines()
        return (self.status, self.out) == (2, "") and bool(re.search(f"^error: .*{pattern}.*[.]$", line))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the command line in this process, as its entry point does."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["perturbdiff", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        return Ended(status, *capsys.readouterr())

    return run
