r"""Agents with features and programmes, and the cells that they act on: what the simulators of `responses` share.

An agent a is a drug, or a gene that is perturbed; these are not the genes of the panel. It has features phi_a, U(-1, 1)
each, and a programme, a change of log1p expression per 10^4 counts::

    delta_{a,g} = sum_f phi_{a,f} M_{f,g} + eps_{a,g}

Feature f moves a module of 8 genes that no other feature moves, 4 up and 4 down, by ``|M_fg| ~ U(0.6, 1.4)``; eps_a has
6 genes outside of all modules, ``|eps_ag| ~ U(0.2, 0.5)``. Whoever knows phi_a and the programmes of other agents can
predict delta_a but for eps_a. A condition shifts every cell by the same amount, its change, that `responses` makes
of programmes. Cell i has a cell type c and an assay batch k; without and with the perturbation it expresses::

    log u_ig = b_g + T_cg + D_kg + w_g z_i + e_ig,    x_ig = log1p(10^4 u_ig / sum_g u_ig)
    x'_ig    = max(x_ig + change_g, 0),               p_ig = expm1(x'_ig) / sum_g expm1(x'_ig)

T ~ N(0, 0.3^2), D ~ N(0, 0.1^2), z ~ N(0, 1), e ~ N(0, 0.1^2), w = 0.3 in 10 genes; p is counted as in
`screen`. The genes that may respond (half of the panel, 200 at most) have exp(b) about 20 per 10^4: enough to
fall, and little enough of the whole that the renormalisation to p lowers x' by about 0.005 only, and by 0.025 where two
agents act. The change is what the formula says; the effect is the mean over the control cells of log1p(10^4 p) - x, in
which the renormalisation and the floor at 0 count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from perturbdiff.simulation.design import (
    PER,
    Design,
    Flags,
    Floats,
    Integers,
    Sizes,
    check_sizes,
    count_cells,
    draw_design,
    gene_names,
    labels_of,
    numbered,
)

EXTRA = 12
"""Genes of a part that an agent's programme lacks: a modality's, or a pair's."""

_MODULE, _OWN = 8, 6  # genes of a feature, and of an agent alone
_STRONG, _WEAK = (0.6, 1.4), (0.2, 0.5)  # sizes of change, in log1p units
_RESPONSIVE, _LEVEL = 200, 20.0  # genes that may respond, at most, and their expression per 10^4
_SD_TYPE, _SD_BATCH, _SD_CELL = 0.3, 0.1, 0.1
_N_LOADED, _LOADING = 10, 0.3


@dataclass(frozen=True)
class World:
    """What is drawn before conditions and cells; symbols as in the module's formulas."""

    sizes: Sizes
    agents: list[str]
    phi: Floats  # [agents, features]
    M: Floats  # [features, genes]
    delta: Floats  # [agents, genes]
    responsive: Integers  # columns of the genes that may respond, modules first
    others: Integers  # those of them that are outside of modules
    b: Floats  # [genes]
    T: Floats  # [types, genes]
    D: Floats  # [batches, genes]
    w: Floats  # [genes]
    dispersion: Floats  # [genes]


class Conditions(NamedTuple):
    """What is done to cells, control left out.

    Attributes:
        labels: one per condition, each its own.
        perturbations: what obs has in its place, which conditions may share.
        change: of log1p expression [conditions, genes].
        in_data: whether a condition has cells [conditions].
        numbers: further columns of obs [conditions], NaN for control.
    """

    labels: list[str]
    perturbations: list[str]
    change: Floats
    in_data: Flags
    numbers: Mapping[str, Floats] = {}


def draw_world(sizes: Sizes, stem: str, n_features: int, n_reserved: int, rng: np.random.Generator) -> World:
    """Draw the agents, and all that cells have in common.

    Args:
        sizes: n_perturbations is the number of agents.
        stem: of the agents' names, "<stem>_1" and so on.
        n_features: of every agent.
        n_reserved: genes that may respond beside those of an agent's programme, at least.
        rng: of everything random.

    Raises:
        ValueError: a size is below 1, or there are too few genes that may respond.
    """
    check_sizes(sizes._asdict() | {"n_features": n_features})
    n_genes, n_agents, n_modular = sizes.n_genes, sizes.n_perturbations, n_features * _MODULE
    responsive, silent = np.split(rng.permutation(n_genes), [min(n_genes // 2, _RESPONSIVE)])
    needed = n_modular + _OWN + n_reserved
    if len(responsive) < needed:
        raise ValueError(
            f"n_genes={n_genes} has {len(responsive)} genes that may respond (half of all, {_RESPONSIVE} at most), and "
            f"n_features={n_features} calls for {needed}; use more genes, or fewer features or modalities."
        )
    others = responsive[n_modular:]
    phi = rng.uniform(-1.0, 1.0, (n_agents, n_features))
    M = signed(responsive[:n_modular].reshape(n_features, _MODULE), n_genes, _STRONG, rng)
    own = signed(some(others, n_agents, _OWN, rng), n_genes, _WEAK, rng)
    b = rng.normal(0.0, 0.7, n_genes)
    b[responsive] = rng.normal(np.log(_LEVEL), 0.3, len(responsive))
    b[silent] += np.log(PER - np.exp(b[responsive]).sum()) - np.log(np.exp(b[silent]).sum())
    w = np.zeros(n_genes)
    w[silent[:_N_LOADED]] = _LOADING
    return World(
        sizes=sizes,
        agents=numbered(stem, n_agents),
        phi=phi,
        M=M,
        delta=phi @ M + own,
        responsive=responsive,
        others=others,
        b=b,
        T=rng.normal(0.0, _SD_TYPE, (sizes.n_cell_types, n_genes)),
        D=rng.normal(0.0, _SD_BATCH, (sizes.n_assay_batches, n_genes)),
        w=w,
        dispersion=np.exp(rng.normal(np.log(0.15), 0.4, n_genes)),
    )


def draw_extra(columns: Integers, n_rows: int, n_genes: int, rng: np.random.Generator) -> Floats:
    """Draw strong changes [rows, genes], each of 12 of the columns."""
    return signed(some(columns, n_rows, EXTRA, rng), n_genes, _STRONG, rng)


def some(columns: Integers, n_rows: int, n_each: int, rng: np.random.Generator) -> Integers:
    """Choose n_each of the columns, without repeats, for every row; [rows, n_each]."""
    chosen: Integers = rng.permuted(np.tile(columns, (n_rows, 1)), axis=1)[:, :n_each]
    return chosen


def signed(columns: Integers, n_genes: int, size: tuple[float, float], rng: np.random.Generator) -> Floats:
    """Draw changes uniform in size, half of them up, in the columns [rows, k even] of every row; [rows, genes]."""
    values = np.zeros((len(columns), n_genes))
    sign = rng.permuted(np.resize([-1.0, 1.0], columns.shape), axis=1)
    np.put_along_axis(values, columns, sign * rng.uniform(*size, columns.shape), axis=1)
    return values


def simulated(world: World, conditions: Conditions, truth: Mapping[str, Any], rng: np.random.Generator) -> AnnData:
    """Draw and count the cells of control and of the conditions that are in the data.

    Args:
        world: the agents, and what cells have in common.
        conditions: those that have no cells are in the truth only.
        truth: what uns["truth"] holds beside the parameters of `world` and `conditions`.
        rng: of the cells.

    Returns:
        Raw counts (CSR, float32) in random order of cells.
    """
    change, in_data = conditions.change, conditions.in_data
    design = draw_design(world.sizes._replace(n_perturbations=int(in_data.sum())), rng)
    x = _unperturbed(world, design, rng)
    shift = np.vstack([change[in_data], np.zeros(change.shape[1])])[design.perturbation]
    counts = count_cells(_expressed(x + shift) / PER, world.dispersion, rng)
    control = x[design.perturbation < 0]
    effect = [np.log1p(_expressed(control + one)).mean(axis=0) - control.mean(axis=0) for one in change]
    known = {
        "conditions": np.array(conditions.labels, dtype=object),
        "in_data": in_data,
        "change": change,
        "effect": np.array(effect),
        "agents": np.array(world.agents, dtype=object),
        "programme": world.delta,
        "loading": world.M,
        "log_baseline": world.b,
        "log_type_effect": world.T,
        "log_batch_effect": world.D,
        "activation_loading": world.w,
        "dispersion": world.dispersion,
    }
    present = np.flatnonzero(in_data)
    obs = labels_of(design, [conditions.perturbations[i] for i in present], world.sizes)
    for name, numbers in conditions.numbers.items():
        obs[name] = np.append(numbers[present], np.nan)[design.perturbation]
    features = pd.Index(numbered("feature", len(world.M)))
    return AnnData(
        X=counts,
        obs=obs,
        var=pd.DataFrame(index=pd.Index(gene_names(world.sizes))),
        uns={
            "truth": known | dict(truth),
            "features": pd.DataFrame(world.phi, index=pd.Index(world.agents), columns=features),
        },
    )


def _unperturbed(world: World, design: Design, rng: np.random.Generator) -> Floats:
    """Draw x [cells, genes]; every cell has 10^4 in all."""
    log_u = (world.b + world.T)[design.cell_type]
    log_u += world.D[design.assay_batch]
    log_u += rng.standard_normal((len(log_u), 1)) * world.w
    log_u += rng.normal(0.0, _SD_CELL, log_u.shape)
    u = np.exp(log_u, out=log_u)
    u *= PER / u.sum(axis=1, keepdims=True)
    return np.log1p(u)


def _expressed(shifted: Floats) -> Floats:
    """Compute 10^4 p [cells, genes] of log1p expression that a change has shifted."""
    u: Floats = np.expm1(np.maximum(shifted, 0.0))
    u *= PER / u.sum(axis=1, keepdims=True)
    return u
