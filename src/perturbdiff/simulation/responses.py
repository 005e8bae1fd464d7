r"""A simulator of doses, modalities and combinations with a known truth: what the conditions of a screen share.

A perturbation tau is a set of agents a, each with a modality m and a dose d, and shifts log1p expression per 10^4
counts by the same amount in every cell, x' = max(x + change(tau), 0)::

    change(tau) = sum_{(a,m,d) in tau} s_m hill_a(d) delta_{a,m} + interaction sum_{{a,b} in tau} delta_{ab}

    hill_a(d)   = d^n_a / (d^n_a + EC50_a^n_a)                      1/2 at d = EC50_a; 1 where there is no dose
    delta_{a,m} = sqrt(share) delta_a + sqrt(1 - share) eps_{a,m}   delta_a where modalities play no part

delta_a is the agent's programme, which its features phi_a predict but for a small part: see `programmes`, where
the cells and their counts are too. The signed strengths s_m are +1 for drugs and combinations, -1 for a knockout, -0.8
for CRISPRi and +0.6 for CRISPRa: what one lowers another raises. eps_{a,m} has 12 genes that neither delta_a nor
another modality of a moves, and is as long as delta_a; so, for two modalities of one gene::

    cos(change_{a,m}, change_{a,m'}) = sign(s_m s_m') share

delta_ab has 12 genes, ``|delta_ab,g| ~ U(0.6, 1.4)``. log EC50 is uniform from log 0.05 to log 2, in the unit of the
doses, and n_a ~ U(0.8, 2.5).

``uns["truth"]`` of every simulation holds these arrays, and what a function adds to them:

- conditions [conditions]: their labels; in_data [conditions]: false for those that have no cells.
- change [conditions, genes]: by the formula, in log1p units.
- effect [conditions, genes]: what one observes but for count noise, which is the change but for the floor at 0 and the
  renormalisation to 10^4; both are small.
- agents [agents]; programme [agents, genes]: delta_a; loading [features, genes]: M, delta_a being about phi_a M.
- log_baseline, activation_loading, dispersion [genes]; log_type_effect [types, genes]; log_batch_effect
  [batches, genes]; seed.

``uns["features"]`` is phi, a table whose index is the agents. For the same seed and panel, all of it but the effect is
the same whatever the doses, the pairs that are in the data, and the numbers of cells.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import log
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import expit

from perturbdiff.labels.dose import quantity, written
from perturbdiff.simulation.design import Flags, Floats, Sizes, check_sizes
from perturbdiff.simulation.programmes import EXTRA, Conditions, World, draw_extra, draw_world, simulated
from perturbdiff.spelling import nearest

_LOG_EC50, _HILL = (log(0.05), log(2.0)), (0.8, 2.5)
_STRENGTH = {"knockout": -1.0, "CRISPRi": -0.8, "CRISPRa": 0.6}


def simulate_doses(
    *,
    n_drugs: int = 6,
    doses: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    unit: str = "uM",
    n_genes: int = 200,
    n_cell_types: int = 2,
    n_assay_batches: int = 1,
    cells_per_group: int = 60,
    control_cells_per_group: int = 200,
    n_features: int = 4,
    seed: int = 0,
) -> AnnData:
    """Simulate every drug at every dose, in every cell type and assay batch.

    Args:
        n_drugs: "drug_1" and so on.
        doses: above 0; they change nothing of the drugs.
        unit: of the doses and of EC50.
        n_genes: of the panel; half of them, 200 at most, may respond.
        n_cell_types: "type_1" and so on.
        n_assay_batches: "donor_1" and so on.
        cells_per_group: of every (condition, cell type, assay batch).
        control_cells_per_group: of every (cell type, assay batch).
        n_features: of an agent, each with 8 genes of its own.
        seed: of everything random.

    Returns:
        Raw counts in X (CSR, float32), cells in random order; obs has perturbation (the drug alone), dose (NaN for
        control), dose_unit, cell_type, assay_batch. A condition is written ``[('drug_1', 0.1, 'uM')]``; the truth has
        also drug and dose [conditions], ec50 and hill (n_a) [agents], dose_unit. The same seed with other doses has the
        same drugs.

    Raises:
        ValueError: a size is below 1, or there are too few genes for the features; a dose is not above 0, or is twice
            there; the unit is unknown.
    """
    amounts = _amounts(doses, unit)
    check_sizes({"n_drugs": n_drugs})
    sizes = Sizes(n_genes, n_cell_types, n_assay_batches, n_drugs, cells_per_group, control_cells_per_group)
    rng = np.random.default_rng(seed)
    world = draw_world(sizes, "drug", n_features, 0, rng)
    ec50, hill = np.exp(rng.uniform(*_LOG_EC50, n_drugs)), rng.uniform(*_HILL, n_drugs)
    drug, dose = np.repeat(np.arange(n_drugs), len(doses)), np.tile(np.asarray(doses, dtype=np.float64), n_drugs)
    change = _saturation(dose, ec50[drug], hill[drug])[:, None] * world.delta[drug]
    names = [world.agents[a] for a in drug]
    labels = [written([(name, amount, unit)]) for name, amount in zip(names, amounts * n_drugs, strict=True)]
    conditions = Conditions(labels, names, change, np.ones(len(dose), dtype=np.bool_), {"dose": dose})
    truth = {"drug": _texts(names), "dose": dose, "ec50": ec50, "hill": hill, "dose_unit": unit, "seed": seed}
    adata = simulated(world, conditions, truth, rng)
    adata.obs["dose_unit"] = pd.Categorical([unit] * adata.n_obs)
    return adata


def true_change(adata: AnnData, drug: str, dose: float) -> Floats:
    """The change of log1p expression [genes] by a drug of `simulate_doses` at any dose, in the unit of the data.

    Raises:
        ValueError: the data are not from `simulate_doses`, lack the drug (the nearest is named), or the dose is not
            above 0.
    """
    truth: Any = adata.uns.get("truth", {})
    if "ec50" not in truth:
        raise ValueError(f"uns['truth'] has {sorted(truth)} and no 'ec50'; give data that simulate_doses has made.")
    drugs = [str(name) for name in truth["agents"]]
    if drug not in drugs:
        raise ValueError(f"drug {drug!r} is not one of the {len(drugs)} simulated ones; {nearest(drug, drugs)}.")
    quantity(f"{dose:.12g}", str(truth["dose_unit"]), drug)
    a = drugs.index(drug)
    change: Floats = _saturation(dose, truth["ec50"][a], truth["hill"][a]) * truth["programme"][a]
    return change


def simulate_modalities(
    *,
    n_genes_perturbed: int = 12,
    modalities: Sequence[str] = ("CRISPRi", "CRISPRa"),
    pairs: Sequence[tuple[str, str]] | None = None,
    share: float = 0.9,
    n_genes: int = 200,
    n_cell_types: int = 2,
    n_assay_batches: int = 1,
    cells_per_group: int = 60,
    control_cells_per_group: int = 200,
    n_features: int = 4,
    seed: int = 0,
) -> AnnData:
    """Simulate genes ("gene_1" and so on) that are each perturbed alone, by one modality or another.

    Args:
        n_genes_perturbed: agents; `n_genes` is the size of the panel.
        modalities: of "knockout", "CRISPRi", "CRISPRa".
        pairs: the (gene, modality) that are in the data; None takes all. The truth holds all.
        share: 0 to 1, of a programme's squared length, which all modalities have in common.
        n_genes: of the panel; half of them, 200 at most, may respond.
        n_cell_types: "type_1" and so on.
        n_assay_batches: "donor_1" and so on.
        cells_per_group: of every (condition, cell type, assay batch).
        control_cells_per_group: of every (cell type, assay batch).
        n_features: of an agent, each with 8 genes of its own.
        seed: of everything random.

    Returns:
        As `simulate_doses`, without doses; perturbation is ``gene_1|CRISPRi``. The truth has also gene and modality
        [conditions], modalities and strength (s_m) [modalities], share.

    Raises:
        ValueError: a size is below 1, or there are too few genes for features and modalities; a modality or a pair is
            unknown or twice there, or there is none; the share is not from 0 to 1.
    """
    _check_modalities(modalities, share)
    check_sizes({"n_genes_perturbed": n_genes_perturbed})
    sizes = Sizes(n_genes, n_cell_types, n_assay_batches, n_genes_perturbed, cells_per_group, control_cells_per_group)
    rng = np.random.default_rng(seed)
    world = draw_world(sizes, "gene", n_features, EXTRA * len(modalities), rng)
    strength = np.array([_STRENGTH[m] for m in modalities])
    mixed = np.sqrt(share) * world.delta[:, None] + np.sqrt(1 - share) * _parts_of(world, len(modalities), rng)
    change = (strength[:, None] * mixed).reshape(-1, n_genes)
    members = [(agent, modality) for agent in world.agents for modality in modalities]
    labels = ["|".join(member) for member in members]
    in_data = _chosen(pairs, "|", {label: i for i, label in enumerate(labels)}, len(labels))
    if not in_data.any():
        raise ValueError("pairs is empty, and some perturbation must be in the data; name one, or give None for all.")
    genes, kinds = (_texts(column) for column in zip(*members, strict=True))
    truth = {"gene": genes, "modality": kinds, "modalities": _texts(modalities), "strength": strength, "share": share}
    return simulated(world, Conditions(labels, labels, change, in_data), truth | {"seed": seed}, rng)


def simulate_combinations(
    *,
    n_agents: int = 6,
    pairs: Sequence[tuple[str, str]] | None = None,
    interaction: float = 0.0,
    interacting: Sequence[tuple[str, str]] | None = None,
    n_genes: int = 200,
    n_cell_types: int = 2,
    n_assay_batches: int = 1,
    cells_per_group: int = 60,
    control_cells_per_group: int = 200,
    n_features: int = 4,
    seed: int = 0,
) -> AnnData:
    """Simulate agents ("gene_1" and so on) alone and two at a time; the change of two is a sum at interaction 0.

    Args:
        n_agents: all of them are in the data alone.
        pairs: that are in the data together, in either order; None takes all. The truth holds all.
        interaction: factor of the part that a pair has beside the sum.
        interacting: pairs that have such a part; None takes all.
        n_genes: of the panel; half of them, 200 at most, may respond.
        n_cell_types: "type_1" and so on.
        n_assay_batches: "donor_1" and so on.
        cells_per_group: of every (condition, cell type, assay batch).
        control_cells_per_group: of every (cell type, assay batch).
        n_features: of an agent, each with 8 genes of its own.
        seed: of everything random.

    Returns:
        As `simulate_doses`, without doses; perturbation is ``gene_1`` or ``gene_1+gene_2``. The truth has also first
        and second [conditions], second being "" for one agent alone, and interaction.

    Raises:
        ValueError: a size is below 1, or there are too few genes for the features; a pair is unknown or twice there;
            the interaction is not finite.
    """
    if not np.isfinite(interaction):
        raise ValueError(f"interaction={interaction} is not finite; give a number, 0 for sums.")
    check_sizes({"n_agents": n_agents})
    sizes = Sizes(n_genes, n_cell_types, n_assay_batches, n_agents, cells_per_group, control_cells_per_group)
    rng = np.random.default_rng(seed)
    world = draw_world(sizes, "gene", n_features, 0, rng)
    couples = list(combinations(range(n_agents), 2))
    names = [(world.agents[a], world.agents[b]) for a, b in couples]
    place = {"+".join(pair[::step]): i for i, pair in enumerate(names) for step in (1, -1)}
    extra = interaction * draw_extra(world.responsive, len(couples), n_genes, rng)
    extra *= _chosen(interacting, "+", place, len(couples))[:, None]
    first, second = np.array(couples, dtype=np.int64).reshape(-1, 2).T
    change = np.vstack([world.delta, world.delta[first] + world.delta[second] + extra])
    labels = [*world.agents, *("+".join(pair) for pair in names)]
    in_data = np.append(np.ones(n_agents, dtype=np.bool_), _chosen(pairs, "+", place, len(couples)))
    left, right = zip(*((agent, "") for agent in world.agents), *names, strict=True)
    truth = {"first": _texts(left), "second": _texts(right), "interaction": interaction, "seed": seed}
    return simulated(world, Conditions(labels, labels, change, in_data), truth, rng)


def _parts_of(world: World, n_modalities: int, rng: np.random.Generator) -> Floats:
    """Draw eps_{a,m} [agents, modalities, genes], whose genes no other part of a's programmes moves."""
    n_genes = world.delta.shape[1]
    parts = np.zeros((len(world.delta), n_modalities, n_genes))
    for a, delta in enumerate(world.delta):
        free = rng.permutation(world.others[delta[world.others] == 0])
        for m in range(n_modalities):
            part = draw_extra(free[m * EXTRA : (m + 1) * EXTRA], 1, n_genes, rng)[0]
            parts[a, m] = part * np.linalg.norm(delta) / np.linalg.norm(part)
    return parts


def _saturation(dose: Any, ec50: Any, hill: Any) -> Any:  # noqa: ANN401 - numbers or arrays
    """hill_a(d), as a logistic of log d, which cannot overflow."""
    return expit(hill * (np.log(dose) - np.log(ec50)))


def _amounts(doses: Sequence[float], unit: str) -> list[str]:
    amounts = [f"{dose:.12g}" for dose in doses]
    if not amounts:
        raise ValueError("doses is empty, and there must be one; add a dose above 0.")
    for amount in amounts:
        quantity(amount, unit, "drug_1")
        if amounts.count(amount) > 1:
            raise ValueError(f"dose {amount} is twice in doses; name each dose once.")
    return amounts


def _check_modalities(modalities: Sequence[str], share: float) -> None:
    if not modalities or isinstance(modalities, str):
        raise ValueError(f"modalities={modalities!r} is no list of modalities; name some of {', '.join(_STRENGTH)}.")
    for modality in modalities:
        if modality not in _STRENGTH:
            raise ValueError(f"modality {modality!r} is unknown; {nearest(modality, _STRENGTH)}.")
        if list(modalities).count(modality) > 1:
            raise ValueError(f"modality {modality!r} is twice in modalities; name each once.")
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} is not from 0 to 1; give 1 where modalities differ in sign and strength only.")


def _chosen(pairs: Sequence[tuple[str, str]] | None, sign: str, place: Mapping[str, int], n: int) -> Flags:
    """Which of n conditions are among the pairs; all for None."""
    chosen = np.full(n, pairs is None, dtype=np.bool_)
    for pair in () if pairs is None else pairs:
        label = sign.join(map(str, pair))
        if label not in place:
            raise ValueError(
                f"pair {pair!r} cannot be simulated; write two names as in {label!r}: {nearest(label, place)}."
            )
        if chosen[place[label]]:
            raise ValueError(f"pair {pair!r} is twice there; name each pair once.")
        chosen[place[label]] = True
    return chosen


def _texts(names: Sequence[str]) -> Any:  # noqa: ANN401 - an array of objects, as files of AnnData hold texts
    return np.array(names, dtype=object)
