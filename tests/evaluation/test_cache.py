"""The cache gives back what it kept, and nothing where anything that the numbers depend on has changed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pytest

from perturbdiff.cells.memory import Cells
from perturbdiff.evaluation.alignment import align
from perturbdiff.evaluation.cache import Cache, content_hash
from perturbdiff.metrics.conditions import Context
from perturbdiff.metrics.differential_expression import rank_sum


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    labels = [(label, "T", "") for label in ("control", "a", "b") for _ in range(6)]
    cells = Cells(
        values=rng.gamma(1.0, 1.0, (18, 5)).astype(np.float32),
        scale="log1p",
        total_counts=None,
        genes=pd.Index([f"g{i}" for i in range(5)]),
        names=pd.Index([f"c{i}" for i in range(18)]),
        labels=pd.DataFrame(labels, columns=["perturbation", "cell_type", "assay_batch"]).astype("category"),
        control="control",
    )
    return align({"model": cells}, cells)


@pytest.fixture
def tests(pairs):
    control = pairs.control(Context("T")).cells
    return {condition: rank_sum(pairs.observed_cells(condition).cells, control) for condition in pairs.conditions}


def test_kept_tests_come_back_to_the_last_bit(pairs, tests, tmp_path):
    cache = Cache(tmp_path / "new" / "folder", "these files")
    assert cache.load(pairs) == {}
    cache.save(pairs, tests)
    found = cache.load(pairs)
    assert list(found) == list(pairs.conditions)
    for condition, test in found.items():
        assert np.array_equal(test.p_value, tests[condition].p_value)
        assert np.array_equal(test.effect, tests[condition].effect)


def test_nothing_is_found_where_files_genes_conditions_or_the_seed_are_others(pairs, tests, tmp_path):
    Cache(tmp_path, "these files").save(pairs, tests)
    assert Cache(tmp_path, "other files").load(pairs) == {}
    cache = Cache(tmp_path, "these files")
    for changed in (
        replace(pairs, genes=pairs.genes[:4]),
        replace(pairs, conditions=pairs.conditions[:1]),
        replace(pairs, seed=1),
    ):
        assert cache.load(changed) == {}


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_file_is_as_if_it_were_not_there_and_is_made_again(pairs, tests, tmp_path, damage):
    cache = Cache(tmp_path, "these files")
    cache.save(pairs, tests)
    path = cache.path(pairs)
    path.write_bytes(path.read_bytes()[:200] if damage is None else damage)
    assert cache.load(pairs) == {}
    cache.save(pairs, tests)
    assert cache.load(pairs)


def test_tables_are_made_once_and_come_back_as_what_they_were(pairs, tmp_path):
    made = []

    def make(table):
        made.append(1)
        return table

    keep = Cache(tmp_path, "these files").keep(pairs)
    for table in (pl.DataFrame({"target": ["a", "b"], "p": [0.1, 0.2]}), pd.DataFrame({"target": ["a"], "p": [0.3]})):
        name = type(table).__module__.partition(".")[0]
        for _ in range(2):
            found = keep(name, lambda table=table: make(table))
            assert type(found) is type(table)
            assert found.equals(table)
    assert len(made) == 2


def test_a_hash_is_of_the_content_of_a_file_or_of_all_files_of_a_folder(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_bytes(b"same")
    assert content_hash(tmp_path / "one" / "part") == content_hash(tmp_path / "two" / "part")
    assert content_hash(tmp_path / "one") == content_hash(tmp_path / "two")
    (tmp_path / "two" / "part").rename(tmp_path / "two" / "other")
    assert content_hash(tmp_path / "one") != content_hash(tmp_path / "two")
