"""Fixtures shared by all tests: where the real data and the golden tensors lie, and random generators."""

from pathlib import Path

import numpy as np
import pytest
import torch

SHARED = Path(__file__).parents[2] / "shared"


def _folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: this test reads files that are not part of the project")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real single-cell data."""
    return _folder("data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of tensors recorded from the authors' release."""
    return _folder("golden")


@pytest.fixture(scope="session")
def recipes() -> Path:
    """The folder of the paper's recipes."""
    return _folder("recipes")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
