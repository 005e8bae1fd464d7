"""What a training begins with, without the training; validations of which the energies are known."""

from types import SimpleNamespace

import pytest

from perturbdiff.training.module import DenoiserModule
from perturbdiff.training.patience import Energies


@pytest.fixture
def begins_with(monkeypatch):
    """The network of a model at step 0 and its populations: begins_with(model, hold_out=...)."""

    def begin(model, **options):
        states = []

        def kept(_spec, begin, *, run):
            states.append(begin())
            return SimpleNamespace(checkpoint=None)

        with monkeypatch.context() as patch:
            patch.setattr("perturbdiff.training.trainer.fit", kept)
            model.train(device="cpu", show_progress=False, **options)
        return states[0]

    return begin


@pytest.fixture
def energies(monkeypatch):
    """Give validations such energies, by step, of one group or a list of several; all others are worse than these."""

    def arrange(**by_step):
        known = {int(step[1:]): energy for step, energy in by_step.items()}

        def validation_energies(module):
            module._sampled.clear()
            found = known.get(module.global_step, 9.0)
            groups = found if isinstance(found, list) else [found]
            populations = groups if len(groups) > 1 else 3 * groups
            return Energies({(i, 1, 1): energy for i, energy in enumerate(groups)}, populations)

        monkeypatch.setattr(DenoiserModule, "validation_energies", validation_energies)

    return arrange
