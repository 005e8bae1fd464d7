r"""Classifier-free guidance as a wrapper around a denoiser.

    guided = conditional + sum_k w_k (conditional - conditional without D_k)

Each term k has a strength w_k and names the covariates D_k that its pass replaces by their trained nulls; the control
cells stay. Two choices of terms:

* one strength w: the one term drops all covariates, or those that are named; with all of them it is the paper's
  (1 + w) conditional - w unconditional.
* three strengths: a term for each of (perturbation, cell type, assay batch), which drops that covariate alone. How far
  the perturbation is pushed is then another question than how far the cell type is.

The formula is the same in x_0 and in eps, both being affine in each other and its coefficients summing to 1, before any
clamping. `of` says what it is applied to:

* ``"x_0"``: the denoised populations, after their ReLU (the release's way).
* ``"change"``: what stands inside the ReLU, so that a gene that one of the passes silences is not pushed off zero by
  it; or the change of counts, of which cells are then drawn once.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from perturbdiff.core.choices import COVARIATES, Of
from perturbdiff.core.denoiser import DenoiserContract
from perturbdiff.core.observation import Estimate
from perturbdiff.core.population import Noised

ALL = (True, True, True)


class Guided:
    """A denoiser guided by the difference that its condition makes.

    Args:
        denoiser: to be wrapped.
        strength: w, or one for each of (perturbation, cell type, assay batch); a term of strength 0 costs nothing, and
            without terms there is one pass, which changes nothing.
        of: what the formula is applied to.
        covariates: which of (perturbation, cell type, assay batch) the pass of a single strength drops; the paper drops
            all. Three strengths name their covariates themselves.
        one_pass: all passes as one minibatch of so many copies; one pass after the other gives the same at the
            release's cost.

    Raises:
        ValueError: three strengths, and `covariates` too.
    """

    def __init__(
        self,
        denoiser: DenoiserContract,
        *,
        strength: float | tuple[float, float, float],
        of: Of = "x_0",
        covariates: tuple[bool, bool, bool] = ALL,
        one_pass: bool = True,
    ) -> None:
        if isinstance(strength, tuple):
            if covariates != ALL:
                raise ValueError(
                    f"covariates={covariates} is of a single strength, and strength={strength} has one for each "
                    "covariate; leave covariates out."
                )
            alone = [tuple(name == other for other in COVARIATES) for name in COVARIATES]
            terms = list(zip(strength, alone, strict=True))
        else:
            terms = [(strength, covariates)]
        self.denoiser = denoiser
        self.terms = [(w, dropped) for w, dropped in terms if w != 0]
        self.of = of
        self.one_pass = one_pass

    def __call__(self, noised: Noised) -> Float[Tensor, "batch cells genes"]:
        """Guided x_0; with ``of="x_0"`` it may be negative where a strength is above 0."""
        return self.estimate(noised).x_0

    def estimate(self, noised: Noised) -> Estimate:
        """Guided x_0; where x_0 itself is guided, its cells have no totals."""
        guided = self.unclamped(noised)
        return Estimate(guided) if self.of == "x_0" else self.made_of(guided, noised)

    def made_of(self, unclamped: Float[Tensor, "batch cells genes"], noised: Noised) -> Estimate:
        """As the denoiser does it."""
        return self.denoiser.made_of(unclamped, noised)

    def unclamped(self, noised: Noised) -> Float[Tensor, "batch cells genes"]:
        """The guided quantity before any clamping."""
        evaluate = self.denoiser if self.of == "x_0" else self.denoiser.unclamped
        if not self.terms:
            return evaluate(noised)
        x_t = noised.x_t
        kept = x_t.new_zeros(len(x_t), len(COVARIATES), dtype=torch.bool) if noised.dropped is None else noised.dropped
        asked = [kept, *(kept | torch.tensor(dropped, device=x_t.device) for _, dropped in self.terms)]
        if self.one_pass:
            copies = noised._replace(dropped=None).repeated(len(asked))._replace(dropped=torch.cat(asked))
            conditional, *others = evaluate(copies).chunk(len(asked))
        else:
            conditional, *others = (evaluate(noised._replace(dropped=dropped)) for dropped in asked)
        guided = (1 + sum(w for w, _ in self.terms)) * conditional
        for (w, _), without in zip(self.terms, others, strict=True):
            guided = guided - w * without
        return guided
