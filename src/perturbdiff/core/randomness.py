r"""Streams of random numbers that belong to populations, not to processes.

The noise of a training step is a function of (seed, step, index of the population), so one process and several draw the
same, and a resumed run repeats what an undisturbed one would have drawn. Each key seeds a generator of its own through
SplitMix64. Torch's generator for the CPU keeps the low 32 bits of its seed, so that of n streams about n^2 / 2^33 pairs
are the same stream: a coincidence among many steps, not a pattern.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perturbdiff.core.process import Process

_MASK = (1 << 64) - 1

_SEEDS = 1 << 62


def _split_mix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def stream(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that is a function of the integers of its key alone, in their order."""
    state = 0
    for part in key:
        state = _split_mix(state ^ (part & _MASK))
    return torch.Generator(device=device).manual_seed(state >> 1)


class PopulationNoise:
    """Draws the noise of a minibatch of populations, each from a stream of its own.

    Args:
        process: gives rho, the share of variance that the cells of one population have in common.
        streams: one generator a population, on the device of the cells.
        shared: one for what the cells of a population have in common, of each row: rows that are parts of one
            population have equal ones. None where each row is a whole population, whose own stream gives that too.
    """

    def __init__(
        self,
        process: Process,
        streams: Sequence[torch.Generator],
        shared: Sequence[torch.Generator] | None = None,
    ) -> None:
        self.process = process
        self.streams = streams
        self.shared = shared

    def __call__(self, like: Float[Tensor, "batch cells genes"]) -> Float[Tensor, "batch cells genes"]:
        """eps_j = sqrt(1 - rho) e_j + sqrt(rho) xi, of the shape, type and device of `like`."""
        if len(self.streams) != len(like):
            message = f"{len(like)} populations need as many streams; {len(self.streams)} were given."
            raise ValueError(message)
        _, n_cells, n_genes = like.shape

        def normal(streams: Sequence[torch.Generator], rows: int) -> Tensor:
            drawn = (torch.randn(rows, n_genes, generator=one, dtype=like.dtype, device=like.device) for one in streams)
            return torch.stack(list(drawn))

        if self.shared is not None and self.process.rho > 0:
            return self.process.noise(normal(self.streams, n_cells), normal(self.shared, 1))
        # one row more than cells where a part is shared: the last is the population's xi
        drawn = normal(self.streams, n_cells + (self.process.rho > 0))
        return self.process.noise(drawn[:, :n_cells], drawn[:, -1:])

    def seeds(self) -> Int[Tensor, " batch"]:
        """Fresh seeds for draws of another kind, one a population."""
        return seeds(self.streams)


def seeds(streams: Sequence[torch.Generator]) -> Int[Tensor, " batch"]:
    """A seed out of each stream."""
    return torch.cat([torch.randint(_SEEDS, (1,), generator=own, device=own.device) for own in streams])
