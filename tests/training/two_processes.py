"""Run by torchrun (or alone): train the tiny screen, write each step's loss, and stop dead at a step where asked.

two_processes.py RECIPE RUN LOSSES [--die-at STEP] [--stage train | pretrain | finetune] [--pretrained FOLDER]
    [--no-better]
"""

import argparse
import json
import os
from pathlib import Path

import torch

from perturbdiff.model import PerturbDiff
from perturbdiff.pretraining import pretrain
from perturbdiff.training.module import DenoiserModule
from perturbdiff.training.patience import Energies
from perturbdiff.training.processes import processes


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("recipe", "run", "losses"):
        parser.add_argument(name)
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--stage", default="train")
    parser.add_argument("--pretrained")
    parser.add_argument("--no-better", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    original, rank, seen = DenoiserModule.training_step, processes().rank, {}

    def training_step(module, batch, batch_idx):
        if module.global_step == asked.die_at:
            os._exit(9)
        loss = original(module, batch, batch_idx)
        seen[module.global_step] = (float(loss.detach()), batch.key.tolist())
        Path(f"{asked.losses}.{rank}").write_text(json.dumps(seen))
        return loss

    def validation_energies(module):
        energies = dict.fromkeys(module._sampled, 1.0)
        module._sampled.clear()
        return Energies(energies, [1.0] * 4)

    DenoiserModule.training_step = training_step
    if asked.no_better:
        DenoiserModule.validation_energies = validation_energies
    options = {"run": asked.run, "device": "cpu", "show_progress": False}
    if asked.stage == "pretrain":
        pretrain(asked.recipe, **options)
    else:
        PerturbDiff.from_recipe(asked.recipe).train(pretrained=asked.pretrained, **options)


if __name__ == "__main__":
    main()
