"""The processes of one training, as torchrun or SLURM started them; one process where nobody did.

    torchrun --nproc-per-node 4 -m perturbdiff train recipe.toml --out runs/x       one machine, four GPUs
    srun --nodes 2 --ntasks-per-node 4 perturbdiff train recipe.toml --out runs/x   SLURM

Lightning's environments know the ranks; nothing else has to be said.
"""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

from perturbdiff.io import run_lock


def one_at_a_time[**P, R](training: Callable[P, R]) -> Callable[P, R]:
    """A training that holds the lock of its folder, the argument `run`, from its first step to its last.

    Raises:
        ValueError: another process trains there.
    """

    @wraps(training)
    def alone(*args: P.args, **options: P.kwargs) -> R:
        run: Any = options.get("run")
        with run_lock(run, first=processes().rank == 0):
            return training(*args, **options)

    return alone


class Processes(NamedTuple):
    """This process among those of the training.

    Attributes:
        rank: its number; 0 writes and speaks.
        world: how many there are.
        nodes: on how many machines, as many on each.
    """

    rank: int = 0
    world: int = 1
    nodes: int = 1

    @property
    def per_node(self) -> int:
        """Processes on each machine."""
        return self.world // self.nodes


def processes() -> Processes:
    """What the launcher says of this process.

    Raises:
        ValueError: the processes are not spread evenly over the machines, or srun was not told how many each runs.
    """
    # what the environments look for first: without it, Lightning need not be imported to know that nobody did
    if not {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"} & os.environ.keys():
        return Processes()
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        rank, world = TorchElasticEnvironment().global_rank(), TorchElasticEnvironment().world_size()
        nodes = max(1, world // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    elif SLURMEnvironment.detect():
        n_tasks = os.environ["SLURM_NTASKS"]
        if n_tasks != "1" and "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise ValueError(
                f"SLURM starts {n_tasks} tasks and does not say how many on each machine; give --ntasks-per-node to "
                "srun or sbatch in place of --ntasks."
            )
        rank, world = SLURMEnvironment().global_rank(), SLURMEnvironment().world_size()
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
    else:
        return Processes()
    if world % nodes:
        raise ValueError(
            f"{world} processes are not spread evenly over {nodes} machines; start as many on each, with "
            "--nproc-per-node of torchrun or --ntasks-per-node of srun."
        )
    return Processes(rank, world, nodes)
