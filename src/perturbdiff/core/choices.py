"""What the science goes by and chooses from; no torch, so that settings and baselines are read without it."""

import math
from typing import Literal

COVARIATES = ("perturbation", "cell_type", "assay_batch")
"""The covariates of a condition, in the order of every table, coin and index."""

Joint = Literal["tokens", "features"]
"""How the two streams attend, see `core.block`."""

Null = Literal["covariate", "joint"]
"""What stands for labels that are dropped, see `core.conditioning`."""

Target = Literal["cell", "change", "residual", "counts"]
"""What the network's output is, see `core.denoiser`."""

ModulateBy = Literal["population", "cell"]
"""What the blocks' modulation looks at, see `core.denoiser`."""

Of = Literal["x_0", "change"]
"""What guidance is applied to, see `core.guidance`."""

DropoutPer = Literal["population", "minibatch"]
"""Whether each population's labels are dropped by coins of its own, see `core.objective`."""

Variance = Literal["small", "large"]
"""The variance of a step of DDPM, see `core.sampler`."""

Pairing = Literal["assay_batch", "cell_type", "nearest", "optimal_transport"]
"""Which control cells stand beside which perturbed cells, see `populations.pairing`."""

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, math.inf)
"""Those of a ridge regression, in units of the mean eigenvalue, see `core.ridge`."""
