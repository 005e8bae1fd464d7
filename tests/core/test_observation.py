"""Cells drawn as counts: the law of what a change makes of them, in closed form, and the mean of its gradient."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from perturbdiff.cells.counts import changed
from perturbdiff.core.observation import HIGHEST, Estimate, drawn_counts, observed

PER = 1e4
CHANGES = (-3.0, -0.7, -0.05, 0.0, 0.05, 0.7, 3.0)


def full(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value, dtype=torch.float64)


def seeds(*values: int) -> Tensor:
    return torch.tensor(values)


def logs(counts: Tensor, totals: Tensor) -> Tensor:
    return torch.log1p(counts * (PER / totals).unsqueeze(-1))


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)


@pytest.fixture
def cells(generator) -> tuple[Tensor, Tensor]:
    """Counts [3, 40, 7] of control cells and their totals, which are more than the sums."""
    counts = torch.poisson(torch.rand(3, 40, 7, generator=generator, dtype=torch.float64) * 6, generator=generator)
    return counts, counts.sum(dim=-1) + 3000


def moments_are(drawn: Tensor, mean: Tensor, variance: Tensor) -> None:
    """The moments of each column [draws, columns], within 5 standard errors."""
    n = len(drawn)
    centred = drawn - mean
    assert (centred.mean(dim=0).abs() <= 5 * (variance / n).sqrt()).all()
    squares = centred.square()
    error = 5 * squares.std(dim=0) / math.sqrt(n)
    assert ((squares.mean(dim=0) - variance).abs() <= error + 1e-12).all()


# the law


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_a_change_of_0_gives_the_control_cells_and_their_totals(cells, dtype, tolerance, scale):
    counts, totals = cells
    control = (logs(counts, totals) / scale).to(dtype)
    found = observed(control, totals.to(dtype), torch.zeros_like(control), seeds(1, 2, 3), scale=scale)
    torch.testing.assert_close(found.x_0, control, rtol=tolerance, atol=tolerance)
    assert torch.equal(found.totals, totals.to(dtype))


@pytest.mark.parametrize("n", [0.0, 1.0, 30.0])
def test_the_counts_have_the_mean_and_the_variance_of_what_is_kept_and_of_what_is_added(n):
    change, total = torch.tensor(CHANGES, dtype=torch.float64), 5000.0
    shape = (1, 40_000, len(change))
    drawn = drawn_counts(full(n, *shape), full(total, *shape[:2]), change.expand(shape), seeds(3))
    p, a = change.clamp(max=0).exp(), change.clamp(min=0).expm1()
    moments_are(drawn[0], n * p + a * total / PER, n * p * (1 - p) + a * total / PER)


@pytest.mark.parametrize("change", [-1.2, -0.1, 0.4, 2.0])
def test_counts_that_are_poisson_stay_so(change, generator):
    mu, total, n_cells = 4.0, 8000.0, 60_000
    counts = torch.poisson(full(mu, 1, n_cells, 1), generator=generator)
    drawn = drawn_counts(counts, full(total, 1, n_cells), full(change, 1, n_cells, 1), seeds(5)).flatten().numpy()
    wanted = scipy.stats.poisson(mu * math.exp(min(change, 0)) + math.expm1(max(change, 0)) * total / PER)
    edge = int(wanted.ppf(1 - 1e-3))
    found = np.bincount(drawn.astype(int).clip(max=edge), minlength=edge + 1)
    expected = n_cells * np.append(wanted.pmf(np.arange(edge)), wanted.sf(edge - 1))
    assert scipy.stats.chisquare(found, expected).pvalue > 1e-4
    # and no other law: the same counts are none of a rate that is 5% higher
    other = scipy.stats.poisson(1.05 * wanted.mean())
    expected = n_cells * np.append(other.pmf(np.arange(edge)), other.sf(edge - 1))
    assert scipy.stats.chisquare(found, expected).pvalue < 1e-4


def test_the_law_is_that_of_an_independent_implementation(rng):
    n_cells, change = 40_000, np.array(CHANGES)
    counts, totals = rng.poisson(3.0, size=(n_cells, len(change))).astype(float), np.full(n_cells, 6000.0)
    other, other_totals = changed(counts, totals, change, rng)
    control = logs(torch.from_numpy(counts), torch.from_numpy(totals))[None]
    found = observed(
        control, torch.from_numpy(totals)[None], torch.from_numpy(change).expand_as(control), seeds(8), scale=1.0
    )
    assert found.totals is not None
    drawn = (torch.expm1(found.x_0) * (found.totals / PER).unsqueeze(-1))[0].numpy()
    for power in (1, 2, 3):
        one, two = (x**power for x in (drawn, other))
        error = np.sqrt((one.var(axis=0) + two.var(axis=0)) / n_cells)
        assert (np.abs(one.mean(axis=0) - two.mean(axis=0)) <= 5 * error + 1e-6).all()
    difference = found.totals[0].numpy() - other_totals
    assert abs(difference.mean()) < 5 * difference.std() / math.sqrt(n_cells)


def test_cells_are_whole_counts_and_their_totals_are_moved_by_what_the_genes_are(cells, normal):
    counts, totals = cells
    change = normal(3, 40, 7, seed=1)
    n = drawn_counts(counts, totals, change, seeds(1, 2, 3))
    assert torch.equal(n, n.round())
    assert (n >= 0).all()
    assert (n[change < 0] <= counts[change < 0]).all()
    assert (n[change >= 0] >= counts[change >= 0]).all()
    found = observed(logs(counts, totals), totals, change, seeds(1, 2, 3), scale=1.0)
    assert torch.equal(found.totals, totals + (n - counts).sum(dim=-1))
    close(found.x_0, logs(n, found.totals))


def test_a_cell_that_loses_all_of_its_counts_is_empty_and_no_number_is_infinite(cells):
    counts, _ = cells
    totals = counts.sum(dim=-1)
    change = torch.full_like(counts, -60.0).requires_grad_()
    found = observed(logs(counts, totals), totals, change, seeds(1, 2, 3), scale=1.0)
    assert not found.x_0.any()
    assert (found.totals == 1).all()
    (gradient,) = torch.autograd.grad(found.x_0.sum(), change)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("beyond", [0.01, 5.0, 300.0])
def test_a_change_above_the_highest_is_taken_for_it(cells, beyond):
    counts, totals = cells
    control = logs(counts, totals)
    change = full(HIGHEST + beyond, 3, 40, 7).requires_grad_()
    at = observed(control, totals, full(HIGHEST, 3, 40, 7), seeds(1, 2, 3), scale=1.0)
    above = observed(control, totals, change, seeds(1, 2, 3), scale=1.0)
    close(above.x_0, at.x_0)
    assert torch.equal(above.totals, at.totals)
    assert at.x_0.isfinite().all()
    (gradient,) = torch.autograd.grad(above.x_0.sum(), change)
    assert not gradient.any()


def test_the_scale_divides_control_and_estimate_and_is_no_part_of_the_change(cells, normal):
    counts, totals = cells
    control, change = logs(counts, totals), normal(3, 40, 7, seed=1)

    def asked(scale: float) -> tuple[Estimate, Tensor]:
        own = change.clone().requires_grad_()
        found = observed(control / scale, totals, own, seeds(1, 2, 3), scale=scale)
        return found, torch.autograd.grad(found.x_0.sum(), own)[0]

    (one, gradient), (other, of_other) = asked(1.0), asked(2.5)
    close(other.x_0 * 2.5, one.x_0)
    close(of_other * 2.5, gradient)
    assert torch.equal(other.totals, one.totals)


# streams


def test_the_draws_are_a_function_of_each_populations_own_seed(cells, normal):
    (counts, totals), change = cells, normal(3, 40, 7, seed=1)
    control = logs(counts, totals)
    one = observed(control, totals, change, seeds(1, 2, 3), scale=1.0)
    again = observed(control, totals, change, seeds(1, 2, 3), scale=1.0)
    other = observed(control, totals, change, seeds(1, 7, 3), scale=1.0)
    alone = observed(control[2:], totals[2:], change[2:], seeds(3), scale=1.0)
    for field in ("x_0", "totals"):
        first, second, third = (getattr(found, field) for found in (one, again, other))
        assert torch.equal(first, second)
        assert torch.equal(first[[0, 2]], third[[0, 2]])
        assert not torch.equal(first[1], third[1])
        assert torch.equal(getattr(alone, field)[0], first[2])


def test_populations_and_cells_of_different_seeds_are_independent():
    shape, totals = (2, 20_000, 1), full(5000.0, 2, 20_000)
    n = drawn_counts(full(4.0, *shape), totals, full(-0.7, *shape), seeds(1, 2)).squeeze(-1)
    correlations = [torch.corrcoef(n)[0, 1], torch.corrcoef(torch.stack([n[0, 1:], n[0, :-1]]))[0, 1]]
    assert max(map(abs, correlations)) < 5 / math.sqrt(20_000)


def test_what_is_drawn_does_not_depend_on_whether_a_gradient_is_asked_for(cells, normal):
    (counts, totals), change = cells, normal(3, 40, 7, seed=1)
    plain = observed(logs(counts, totals), totals, change, seeds(1, 2, 3), scale=1.0)
    with_gradient = observed(logs(counts, totals), totals, change.requires_grad_(), seeds(1, 2, 3), scale=1.0)
    torch.testing.assert_close(with_gradient.x_0, plain.x_0, rtol=0, atol=1e-14)
    assert with_gradient.x_0.requires_grad
    with torch.no_grad():
        assert not observed(logs(counts, totals), totals, change, seeds(1, 2, 3), scale=1.0).x_0.requires_grad


# the gradient


def exact_mean(n: int, total: float, change: float) -> float:
    """E log1p(10^4 n' / N') of the only gene that changes, by the sum over the law of n'."""
    if change < 0:
        drawn = np.arange(n + 1)
        weights = scipy.stats.binom.pmf(drawn, n, math.exp(change))
    else:
        law = scipy.stats.poisson(math.expm1(change) * total / PER)
        drawn = n + np.arange(int(law.ppf(1 - 1e-15)) + 60)
        weights = law.pmf(drawn - n)
    return float(weights @ np.log1p(drawn * (PER / (total + drawn - n))))


def gradients(n: int, total: float, change: float, n_cells: int) -> Tensor:
    """The derivative of x in o of so many cells of one gene."""
    own, totals = full(change, 1, n_cells, 1).requires_grad_(), full(total, 1, n_cells)
    x = observed(logs(full(n, 1, n_cells, 1), totals), totals, own, seeds(11), scale=1.0).x_0
    return torch.autograd.grad(x.sum(), own)[0].flatten()


@pytest.mark.parametrize("change", [-2.0, -0.5, -0.05, 0.05, 0.4, 1.5])
@pytest.mark.parametrize("n", [0, 1, 2, 6])
def test_the_mean_of_the_gradient_is_the_derivative_of_the_mean(n, change):
    """Of the exact mean, by finite differences; the cell's other 5,000 counts hold N' but for a thousandth.

    The derivative of log1p at the draw would not do: of few counts one more or less is no small step. Where n = 0 and
    the change is small it is 10^4 / N = 2 a count, and the mean of x rises by log1p(2) = 1.1.
    """
    total, n_cells, step = 5000.0, 200_000, 1e-4
    gradient = gradients(n, total, change, n_cells)
    wanted = (exact_mean(n, total, change + step) - exact_mean(n, total, change - step)) / (2 * step)
    error = 5 * float(gradient.std()) / math.sqrt(n_cells)
    assert error < 0.03
    assert abs(float(gradient.mean()) - wanted) <= error + 1e-3 * abs(wanted)
    assert (n > 0 or change > 0) == (wanted != 0)


@pytest.mark.parametrize("change", [-0.5, 0.8])
def test_what_a_gene_does_to_the_others_share_of_the_total_has_its_derivative(change):
    n, total, n_cells, step = 1500, 2000.0, 4000, 1e-4
    counts, totals = torch.tensor([n, 3.0], dtype=torch.float64).expand(1, n_cells, 2), full(total, 1, n_cells)
    own = torch.tensor([change, 0.0], dtype=torch.float64).repeat(1, n_cells, 1).requires_grad_()
    x = observed(logs(counts, totals), totals, own, seeds(11), scale=1.0).x_0
    gradient = torch.autograd.grad(x[..., 1].sum(), own)[0][0, :, 0]

    def mean(o: float) -> float:
        after = total + n * math.expm1(min(o, 0.0)) + math.expm1(max(o, 0.0)) * total / PER
        return math.log1p(3 * PER / after)

    wanted = (mean(change + step) - mean(change - step)) / (2 * step)
    assert float(gradient.mean()) == pytest.approx(wanted, rel=5e-3)
    assert wanted < 0


@pytest.mark.parametrize("n", [0, 1, 6])
def test_a_change_of_0_has_the_gradient_of_a_gain(n):
    at = gradients(n, 5000.0, 0.0, 4)
    wanted = (exact_mean(n, 5000.0, 1e-5) - exact_mean(n, 5000.0, 0.0)) / 1e-5
    torch.testing.assert_close(at, full(wanted, 4), rtol=2e-3, atol=0)
    assert wanted > 0


def test_every_cell_has_a_gradient_of_its_own_change_and_none_of_another_cells(cells, normal):
    (counts, totals), change = cells, normal(3, 40, 7, seed=1).requires_grad_()
    x = observed(logs(counts, totals), totals, change, seeds(1, 2, 3), scale=1.0).x_0
    (gradient,) = torch.autograd.grad(x[1, 5].sum(), change)
    assert gradient[1, 5].any()
    gradient[1, 5] = 0
    assert not gradient.any()
