r"""A simulator of perturbed single cells with a known truth: behind the demonstration, the tests and calibration.

Cell i has a cell type c, an assay batch (donor) k and a perturbation tau; lambda is expression per 10^4 counts, without
noise, and x = log1p(lambda). Cell types come in families f(c) = c mod ceil(n_types / 2), whose members look and respond
alike, as two kinds of T cells or of monocytes do. What a cell would express without the perturbation::

    log u_ig = b_g + T_cg + D_kg + w_g z_i        ordinary genes; u_ig = 0 where the gene is silent in the type
    log u_ig = l_c,tau + D_kg + 0.4 e_i,tau       the receptor gene R(tau) of each perturbation
    lambda_ig = 10^4 u_ig / sum_g u_ig,    x_ig = log1p(lambda_ig)

b is scaled so that sum_g exp(b_g) = 10^4; T holds the marker programmes, ``T_cg ~ N(F_f(c),g, 0.3^2)`` around a
family's ``F ~ N(0, 0.8^2)`` (zero for common genes, which half of the genes are; the other genes are silent in 3 of
10 families), D ~ N(0, 0.1^2) the donors' random effects, z_i ~ N(a_c + a_k, 1) the cell's activation, seen in the
genes with w_g = 0.5, e ~ N(0, 1). The receptor levels l_c,tau and the mean activations a_c lie on a grid over the
families, in another order for every perturbation, with a small part of the type's own. The last type, meant to be
held out, has a relative among the others from two types on.

What the perturbation does, delta_tau being its programme (half of its genes belong to a pathway that every second
perturbation shares)::

    additive      x'_ig = max(x_ig + delta_tau,g, 0)                                     in every cell alike; the genes
                                                                                         of programmes are common ones
    interaction   x'_ig = x_ig + y_i s_i eta_k,tau delta_tau,g (1 - x_ig / 7)_+          genes that rise: saturation
                  x'_ig = max(x_ig + y_i s_i eta_k,tau delta_tau,g x_ig / (1 + x_ig), 0) genes that fall
                  x'_ig = 0 where the gene is silent in the type
                  y_i ~ Bernoulli(sigmoid(2 z_i + 1))                                    only some cells respond
                  s_i = r^2 / (r^2 + 15^2),   r = lambda_i,R(tau)                        the receptor sets the strength
                  log eta_k,tau ~ N(0, 0.15^2)                                           alike in all types: `donors`

Then p_ig = expm1(x'_ig) / sum_g expm1(x'_ig), and the counts are negative-binomial as a mixture of gamma and Poisson::

    n_ig ~ Poisson(L_i p_ig gamma_ig),   gamma_ig ~ Gamma(shape 1 / phi_g, mean 1),   log L_i ~ N(log 5000, 0.3^2)

so Var n = mu + phi_g mu^2, given L_i and p_ig. In the interaction setting everything that a type's response depends on
(receptor, activation, saturation, silence) is seen in the type's own control cells, and the law is the same for all
types: the response of a held-out type can be learned from the others, most directly from its relative, whereas the mean
shift of all types is that of no type. In the additive setting, control cells plus the
mean shift of the other types are the right answer, up to count noise (and up to the renormalisation to p, which is
nearly the same for all types).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

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
from perturbdiff.simulation.donors import LIKE_DONORS, N_TOLD, TOLD, Donors, draw_eta

_SD_DONOR, _SD_RECEPTOR = 0.1, 0.4
_SD_TYPE, _SD_OWN = 0.3, 0.1  # of a type around its family: markers; receptor levels and activation
_CEILING = 7.0  # log1p expression at which a gene cannot rise any more
_AMPLITUDE = 3.0  # of the programmes in the interaction setting, where strength and room take most of it away
_HALF, _HILL = 15.0, 2.0  # receptor per 10^4 of half the full strength, and the Hill exponent
_ACTIVATION_LOADING, _N_ACTIVATION = 0.5, 10


@dataclass(frozen=True)
class _Biology:
    """What is drawn once: everything but the cells. Symbols as in the module's formulas."""

    b: Floats  # [genes]
    T: Floats  # [types, genes]; the receptors' columns hold l_c,tau
    expressed: Flags  # O [types, genes]
    D: Floats  # [donors, genes]
    w: Floats  # [genes]
    receptor: Integers  # [perturbations], column of R(tau)
    activation_of_type: Floats  # a_c
    activation_of_batch: Floats  # a_k
    programme: Floats  # delta [perturbations, genes], in log1p units
    eta: Floats  # [donors, perturbations, 2], of the genes of the shared pathway and of the others
    in_pathway: Flags  # [perturbations, genes]
    dispersion: Floats  # phi [genes]


def simulate(
    setting: Literal["interaction", "additive"],
    *,
    n_genes: int = 200,
    n_cell_types: int = 6,
    n_assay_batches: int = 3,
    n_perturbations: int = 4,
    cells_per_group: int = 48,
    control_cells_per_group: int = 96,
    donors: Donors = LIKE_DONORS,
    seed: int,
) -> AnnData:
    """Simulate control and perturbed cells of every (perturbation, cell type, assay batch).

    Args:
        setting: "additive", where the response is one shift of log1p expression for all cells, or "interaction".
        n_genes: genes of the panel, the receptors and the activation genes among them.
        n_cell_types: cell types, "type_1" and so on; the last one is meant to be held out.
        n_assay_batches: donors, "donor_1" and so on.
        n_perturbations: perturbations, "stimulus_1" and so on, beside "control".
        cells_per_group: cells of every (perturbation, cell type, assay batch).
        control_cells_per_group: control cells of every (cell type, assay batch).
        donors: how assay batches differ, in the interaction setting.
        seed: of everything random.

    Returns:
        Raw integer counts in X (CSR, float32), in random order of cells; obs has perturbation, cell_type, assay_batch;
        uns["truth"] the parameters, and "effect" [perturbations, cell types, genes]: the mean over the perturbed cells
        of log1p(10^4 p) with the perturbation minus without it, free of count noise.

    Raises:
        ValueError: for an unknown setting, a law of donors that is none, or sizes that leave no room for a programme.
    """
    donors.check()
    sizes = Sizes(n_genes, n_cell_types, n_assay_batches, n_perturbations, cells_per_group, control_cells_per_group)
    _check(setting, sizes)
    rng = np.random.default_rng(seed)
    biology = _draw_biology(setting, sizes, donors, rng)
    design = draw_design(sizes, rng)
    activation = rng.standard_normal(len(design.cell_type))
    activation += biology.activation_of_type[design.cell_type] + biology.activation_of_batch[design.assay_batch]
    x = _unperturbed(biology, design, activation, rng)
    responds = rng.random(len(activation)) < 1 / (1 + np.exp(-2 * activation - 1))
    responds |= setting == "additive"
    shifted = _additive(biology, design, x) if setting == "additive" else _interaction(biology, design, x, responds)
    p = np.expm1(shifted)
    p /= p.sum(axis=1, keepdims=True)
    counts = count_cells(p, biology.dispersion, rng)
    change = np.log1p(PER * p) - x
    return _assemble(setting, seed, sizes, biology, design, counts, change, responds)


def _check(setting: str, sizes: Sizes) -> None:
    if setting not in ("interaction", "additive"):
        raise ValueError(f"setting {setting!r} is unknown; choose 'interaction' or 'additive'.")
    check_sizes(sizes._asdict())
    needed = 3 * _N_ACTIVATION + 2 * sizes.n_perturbations
    if sizes.n_genes < needed:
        raise ValueError(
            f"n_genes={sizes.n_genes} leaves no room for {sizes.n_perturbations} programmes; use at least {needed} "
            "genes or fewer perturbations."
        )


def _over_families(n_types: int, low: float, high: float, own: float, rng: np.random.Generator) -> Floats:
    """Give values even from low to high over the families, in random order, and N(0, own^2) for each type; [types]."""
    n_families = -(-n_types // 2)
    values = np.linspace(low, high, n_families) if n_families > 1 else np.array([(low + high) / 2])
    spread: Floats = rng.permutation(values)[np.arange(n_types) % n_families]
    return spread + rng.normal(0.0, own, n_types)


def _draw_biology(setting: str, sizes: Sizes, donors: Donors, rng: np.random.Generator) -> _Biology:
    n_genes, n_types, n_batches, n_perturbations = sizes[:4]
    genes = rng.permutation(n_genes)
    receptor, activation, others = np.split(genes, [n_perturbations, n_perturbations + _N_ACTIVATION])
    n_common = len(others) // 2
    common, typical = others[:n_common], others[n_common:]
    w = np.zeros(n_genes)
    w[activation] = _ACTIVATION_LOADING

    b = rng.normal(0.0, 0.7, n_genes)
    b[receptor] = -np.inf
    b += np.log(PER) - np.log(np.exp(b).sum())
    n_families = -(-n_types // 2)
    family = np.arange(n_types) % n_families
    T = np.zeros((n_types, n_genes))
    T[:, typical] = rng.normal(0.0, 0.8, (n_families, len(typical)))[family]
    T[:, typical] += rng.normal(0.0, _SD_TYPE, (n_types, len(typical)))
    expressed = np.ones((n_types, n_genes), dtype=np.bool_)
    expressed[:, typical] = (rng.random((n_families, len(typical))) > 0.3)[family]
    b[receptor] = 0.0
    for column in receptor:
        T[:, column] = _over_families(n_types, np.log(3.0), np.log(60.0), _SD_OWN, rng)

    targets, amplitude = (common, 1.0) if setting == "additive" else (others, _AMPLITUDE)
    dispersion = np.exp(rng.normal(np.log(0.15), 0.4, n_genes))
    dispersion[receptor] = 0.05
    D = rng.normal(0.0, _SD_DONOR, (n_batches, n_genes))
    activation_of_type = _over_families(n_types, -0.8, 0.8, _SD_OWN, rng)
    activation_of_batch = rng.normal(0.0, 0.2, n_batches)
    programme, in_pathway = _draw_programmes(n_genes, n_perturbations, targets, amplitude, rng)
    eta, u = draw_eta(donors, n_batches, n_perturbations, rng)
    told = common[:N_TOLD]
    D[:, told] += TOLD * u[:, None] * np.where(np.arange(len(told)) % 2, -1.0, 1.0)
    return _Biology(
        b=b,
        T=T,
        expressed=expressed,
        D=D,
        w=w,
        receptor=receptor,
        activation_of_type=activation_of_type,
        activation_of_batch=activation_of_batch,
        programme=programme,
        eta=eta,
        in_pathway=in_pathway,
        dispersion=dispersion,
    )


def _draw_programmes(
    n_genes: int, n_perturbations: int, targets: Integers, amplitude: float, rng: np.random.Generator
) -> tuple[Floats, Flags]:
    """Draw delta [perturbations, genes]: half a programme is one of two pathways, half its own; 7 in 10 genes rise.

    And which genes are of the pathway [perturbations, genes].
    """
    half = max(1, len(targets) // 6)
    pathways = np.split(rng.permutation(targets)[: 2 * half], 2)
    sign = np.where(rng.random(n_genes) < 0.7, 1.0, -1.0)
    shared = sign * amplitude * rng.uniform(0.6, 1.8, n_genes)
    programme, in_pathway = np.zeros((n_perturbations, n_genes)), np.zeros((n_perturbations, n_genes), dtype=np.bool_)
    for tau in range(n_perturbations):
        pathway = pathways[tau % 2]
        own = rng.permutation(np.setdiff1d(targets, pathway))[:half]
        programme[tau, pathway] = shared[pathway]
        in_pathway[tau, pathway] = True
        programme[tau, own] = sign[own] * amplitude * rng.uniform(0.6, 1.8, half)
    return programme, in_pathway


def _unperturbed(biology: _Biology, design: Design, activation: Floats, rng: np.random.Generator) -> Floats:
    """Draw x = log1p(lambda) [cells, genes] of every cell as it would be without a perturbation."""
    log_u = (biology.b + biology.T)[design.cell_type]
    log_u += biology.D[design.assay_batch]
    log_u += activation[:, None] * biology.w
    log_u[:, biology.receptor] += _SD_RECEPTOR * rng.standard_normal((len(activation), len(biology.receptor)))
    u = np.exp(log_u, out=log_u)
    u *= biology.expressed[design.cell_type]
    u *= PER / u.sum(axis=1, keepdims=True)
    return np.log1p(u)


def _additive(biology: _Biology, design: Design, x: Floats) -> Floats:
    """Compute x' of the additive setting; controls unchanged."""
    shift = np.vstack([biology.programme, np.zeros(x.shape[1])])[design.perturbation]
    shifted: Floats = np.maximum(x + shift, 0.0)
    return shifted


def _interaction(biology: _Biology, design: Design, x: Floats, responds: Flags) -> Floats:
    """Compute x' of the interaction setting; controls, cells that do not respond and silent genes unchanged."""
    cell = np.arange(len(x))
    receptor = np.expm1(x[cell, biology.receptor[design.perturbation]]) ** _HILL
    strength = receptor / (receptor + _HALF**_HILL)
    strength *= responds & (design.perturbation >= 0)
    of_pathway, of_others = biology.eta[design.assay_batch, design.perturbation].T * strength
    shift = biology.programme[design.perturbation]
    shift *= np.where(biology.in_pathway[design.perturbation], of_pathway[:, None], of_others[:, None])
    room = np.where(shift > 0, np.maximum(1 - x / _CEILING, 0.0), x / (1 + x))
    shift *= room
    shift *= biology.expressed[design.cell_type]
    shifted: Floats = np.maximum(x + shift, 0.0)
    return shifted


def _group_mean(values: Floats, design: Design, sizes: Sizes) -> Floats:
    """Average `values` [cells, k] over perturbed cells of a (perturbation, cell type): [perturbations, types, k]."""
    perturbed = np.flatnonzero(design.perturbation >= 0)
    group = design.perturbation[perturbed] * sizes.n_cell_types + design.cell_type[perturbed]
    n_groups = sizes.n_perturbations * sizes.n_cell_types
    share = 1.0 / (sizes.cells_per_group * sizes.n_assay_batches)
    average = csr_matrix((np.full(len(group), share), (group, perturbed)), shape=(n_groups, len(values)))
    means: Floats = np.asarray(average @ values)
    return means.reshape(sizes.n_perturbations, sizes.n_cell_types, -1)


def _assemble(
    setting: str,
    seed: int,
    sizes: Sizes,
    biology: _Biology,
    design: Design,
    counts: csr_matrix,
    change: Floats,
    responds: Flags,
) -> AnnData:
    perturbations = numbered("stimulus", sizes.n_perturbations)
    genes = gene_names(sizes)
    truth = {
        "setting": setting,
        "seed": seed,
        "perturbations": np.array(perturbations, dtype=object),
        "cell_types": np.array(numbered("type", sizes.n_cell_types), dtype=object),
        "assay_batches": np.array(numbered("donor", sizes.n_assay_batches), dtype=object),
        "effect": _group_mean(change, design, sizes),
        "responding_share": _group_mean(responds[:, None].astype(np.float64), design, sizes)[..., 0],
        "programme": biology.programme,
        "log_baseline": biology.b,
        "log_type_effect": biology.T,
        "expressed_in_type": biology.expressed,
        "log_batch_effect": biology.D,
        "activation_loading": biology.w,
        "activation_of_type": biology.activation_of_type,
        "activation_of_batch": biology.activation_of_batch,
        "receptor_gene": genes[biology.receptor],
        "receptor_level": np.exp(biology.T[:, biology.receptor]),
        # one number where both are equal
        "response_of_batch": biology.eta[..., 0] if (biology.eta[..., 0] == biology.eta[..., 1]).all() else biology.eta,
        "dispersion": biology.dispersion,
    }
    obs = labels_of(design, perturbations, sizes)
    return AnnData(X=counts, obs=obs, var=pd.DataFrame(index=pd.Index(genes)), uns={"truth": truth})
