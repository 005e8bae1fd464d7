r"""Classifier-free guidance as a wrapper around a denoiser.

    guided = (1 + w) conditional - w unconditional

The unconditional pass replaces the condition by its trained nulls and keeps the control cells. The formula is the
same in x_0 and in eps, both being affine in each other, before any clamping. `of` says what it is applied to:

* ``"x_0"``: the two denoised populations, after their ReLU (the release's way).
* ``"change"``: what stands inside the ReLU, so that a gene that either pass silences is not pushed off zero by it.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from perturbdiff.core.denoiser import DenoiserContract
from perturbdiff.core.population import Noised

Of = Literal["x_0", "change"]


class Guided:
    """A denoiser guided by the difference that its condition makes.

    Args:
        denoiser: to be wrapped.
        strength: w; 0 costs one pass and changes nothing.
        of: what the formula is applied to.
        covariates: which of (perturbation, cell type, assay batch) the unconditional pass drops; the paper drops all.
        one_pass: both passes as one doubled minibatch; two passes give the same at the release's cost.
    """

    def __init__(
        self,
        denoiser: DenoiserContract,
        *,
        strength: float,
        of: Of = "x_0",
        covariates: tuple[bool, bool, bool] = (True, True, True),
        one_pass: bool = True,
    ) -> None:
        self.denoiser = denoiser
        self.strength = strength
        self.of = of
        self.covariates = covariates
        self.one_pass = one_pass

    def __call__(self, noised: Noised) -> Float[Tensor, "batch cells genes"]:
        """Guided x_0; with ``of="x_0"`` it may be negative where w > 0."""
        guided = self.unclamped(noised)
        return guided if self.of == "x_0" else functional.relu(guided)

    def unclamped(self, noised: Noised) -> Float[Tensor, "batch cells genes"]:
        """The guided quantity before any clamping."""
        evaluate = self.denoiser if self.of == "x_0" else self.denoiser.unclamped
        if self.strength == 0:
            return evaluate(noised)
        x_t = noised.x_t
        kept = x_t.new_zeros(len(x_t), 3, dtype=torch.bool) if noised.dropped is None else noised.dropped
        without = kept | torch.tensor(self.covariates, device=x_t.device)
        if self.one_pass:
            both = noised._replace(dropped=None).doubled()._replace(dropped=torch.cat([kept, without]))
            conditional, unconditional = evaluate(both).chunk(2)
        else:
            conditional = evaluate(noised._replace(dropped=kept))
            unconditional = evaluate(noised._replace(dropped=without))
        return (1 + self.strength) * conditional - self.strength * unconditional
