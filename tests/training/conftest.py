"""What a training begins with, without the training."""

from types import SimpleNamespace

import pytest


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
