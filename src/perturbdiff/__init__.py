"""Predict how a population of single cells responds to a perturbation.

Populations of cells are points of a Hilbert space, and a diffusion model generates such points (Yuan et al. 2026,
arXiv:2602.19685v1).
"""

from importlib.metadata import version

from perturbdiff.checkpoint import Checkpoint, load_checkpoint
from perturbdiff.comparison import Comparison, compare
from perturbdiff.data.cells import Cells, read_cells
from perturbdiff.data.recipe import Recipe, read_recipe
from perturbdiff.data.simulation import simulate
from perturbdiff.data.split import Split, split_cells
from perturbdiff.model import PerturbDiff

__version__ = version("perturbdiff")

__all__ = [
    "Cells",
    "Checkpoint",
    "Comparison",
    "PerturbDiff",
    "Recipe",
    "Split",
    "compare",
    "load_checkpoint",
    "read_cells",
    "read_recipe",
    "simulate",
    "split_cells",
]
