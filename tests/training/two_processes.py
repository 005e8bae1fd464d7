"""Run by torchrun (or alone): train the tiny screen, write each step's loss, and stop dead at a step where asked.

two_processes.py RECIPE RUN LOSSES [DIE_AT]
"""

import json
import os
import sys
from pathlib import Path

import torch

from perturbdiff.model import PerturbDiff
from perturbdiff.training.module import DenoiserModule
from perturbdiff.training.processes import processes


def main() -> None:
    recipe, run, losses, *die_at = sys.argv[1:]
    torch.set_num_threads(1)
    original, rank, seen = DenoiserModule.training_step, processes().rank, {}

    def training_step(module, batch, batch_idx):
        if die_at and module.global_step == int(die_at[0]):
            os._exit(9)
        loss = original(module, batch, batch_idx)
        seen[module.global_step] = (float(loss.detach()), batch.key.tolist())
        Path(f"{losses}.{rank}").write_text(json.dumps(seen))
        return loss

    DenoiserModule.training_step = training_step
    PerturbDiff.from_recipe(recipe).train(run=run, device="cpu", show_progress=False)


if __name__ == "__main__":
    main()
