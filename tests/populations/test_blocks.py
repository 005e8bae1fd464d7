"""An epoch's order of reading: every cell in one piece, pieces of whole populations, blocks of bounded size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perturbdiff.cells.order import Segments
from perturbdiff.populations.blocks import BLOCK, Blocks, Streams, block_size, window
from perturbdiff.populations.pairing import Groups


def groups_of(sizes):
    """Groups of these sizes, run after run, without gaps."""
    ends = np.cumsum(sizes)
    run = np.arange(len(sizes))
    return Groups.of(Segments(run, ends - np.array(sizes), ends))


@given(sizes=st.lists(st.integers(2, 60) | st.integers(1000, 6000), min_size=1, max_size=30), m=st.integers(2, 300))
@settings(max_examples=60, deadline=None)
def test_blocks_hold_every_cell_once_in_pieces_of_whole_populations(sizes, m):
    groups = groups_of(sizes)
    blocks = Blocks.of(groups, m)
    for epoch in (0, 5):
        numbers = blocks.numbers(blocks.pieces(np.arange(len(blocks))), (3, epoch))
        np.testing.assert_array_equal(np.sort(numbers), np.arange(groups.n_cells))
    last = np.append(np.diff(blocks.group) != 0, [True])
    whole = blocks.size[~last]
    assert set(whole.tolist()) <= {block_size(m), block_size(m) - 1}
    assert blocks.size.max() <= block_size(m)
    assert int(blocks.n_populations.sum()) == sum(-(-n // m) for n in sizes)


@given(sizes=st.lists(st.integers(2, 3000), min_size=1, max_size=200))
@settings(max_examples=30, deadline=None)
def test_a_block_is_a_stretch_of_neighbours_of_less_than_two_blocks_length(sizes):
    blocks = Blocks.of(groups_of(sizes), 64)
    cells = np.add.reduceat(blocks.size, blocks.first[:-1])
    assert cells.max() < 2 * block_size(64)
    # small groups share blocks: no more than one block is short for each that is not
    assert len(blocks) <= 2 * (sum(sizes) // block_size(64) + 1)


def test_a_group_larger_than_a_block_is_turned_anew_each_epoch_and_a_smaller_one_is_not():
    blocks = Blocks.of(groups_of([5000, 100]), 64)
    first = [blocks.numbers(blocks.pieces(np.arange(len(blocks))), (0, epoch)) for epoch in range(4)]
    assert len({int(numbers[0]) for numbers in first}) == 4
    assert all((numbers[5000:] == np.arange(5000, 5100)).all() for numbers in first)
    np.testing.assert_array_equal(np.diff(first[0][:5000]) % 5000, 1)


def test_blocks_hold_about_a_thousand_cells_in_whole_populations():
    assert [block_size(m) for m in (2, 100, 256, 1024, 1500)] == [1024, 1100, 1024, 1024, 1500]
    assert block_size(3) == 3 * -(-BLOCK // 3)


def test_a_window_is_a_random_stretch_of_a_ring(rng):
    np.testing.assert_array_equal(window(rng, 5, 8), np.arange(5))
    starts = set()
    for _ in range(40):
        found = window(rng, 10, 4)
        starts.add(int(found[0]))
        np.testing.assert_array_equal(np.diff(found) % 10, 1)
    assert len(starts) > 5


@pytest.mark.parametrize("pool", [(0, 30), (30, 5000)])
def test_control_cells_of_a_slab_come_from_one_window_and_repeat_only_when_it_is_spent(pool, rng):
    streams = Streams(groups_of([30, 4970]), rng, 1024)
    start, stop = pool
    drawn = np.concatenate([streams.take(start, stop, 10) for _ in range(min(stop - start, 1024) // 10)])
    assert len(np.unique(drawn)) == len(drawn)
    assert drawn.min() >= start
    assert drawn.max() < stop
    more = np.concatenate([streams.take(start, stop, 10) for _ in range(200)])
    assert len(np.unique(np.concatenate([drawn, more]))) == min(stop - start, 1024)
