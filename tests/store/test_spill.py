import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perturbdiff.cells.order import mixed
from perturbdiff.store import spill

CELLS = 64


@pytest.fixture(autouse=True, scope="module")
def _small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "PART_VALUES", 40_000)
        yield


@given(st.lists(st.tuples(st.integers(1, 900), st.integers(0, 300)), min_size=1, max_size=30))
def test_buckets_ascend_with_run_and_hash_and_none_is_much_heavier_than_a_part(sizes):
    cells = np.array([n for n, _ in sizes])
    per_cell = np.array([v for _, v in sizes])
    found = spill.cut(cells, cells * per_cell)
    run = np.repeat(np.arange(len(cells)), cells).astype(np.int32)
    hashes = mixed(np.arange(len(run), dtype=np.uint64))
    order = np.lexsort((hashes, run))
    bucket = found.of(run[order], hashes[order])
    assert (np.diff(bucket) >= 0).all()
    assert bucket.max(initial=0) < len(found)
    weight = np.bincount(bucket, weights=per_cell[run[order]] + CELLS)
    # ranges of hashes hold about equally many cells: within five standard deviations
    in_bucket = np.bincount(bucket)
    assert (weight <= 40_000 * (1 + 5 / np.sqrt(np.maximum(in_bucket, 1))) + per_cell.max() + CELLS).all()


def test_small_runs_share_a_bucket_and_a_large_one_has_its_own():
    cells = np.array([10, 10, 2000, 10, 10])
    found = spill.cut(cells, cells * 36)
    assert found.first.tolist() == [0, 0, 1, 6, 6]
    assert found.pieces.tolist() == [1, 1, 5, 1, 1]
    assert len(found) == 7


def test_the_extreme_hashes_lie_in_the_first_and_the_last_piece():
    found = spill.cut(np.array([2000]), np.array([2000 * 36]))
    ends = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert found.of(np.zeros(2, dtype=np.int32), ends).tolist() == [0, 4]


def test_a_bucket_makes_parts_by_what_it_holds():
    cells, values = np.array([0, 1, 10, 10]), np.array([0, 0, 55_000, 130_000])
    assert spill.n_parts(cells, values).tolist() == [0, 1, 1, 4]
