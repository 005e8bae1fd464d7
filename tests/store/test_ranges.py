import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perturbdiff.store.ranges import Ranges, n_missing, open_array, read

CUTS = {"files of several chunks": ((8,), (32,)), "a file a chunk": ((16,), None), "one file": ((8,), (504,))}


@pytest.fixture(params=CUTS)
def array(request, tmp_path):
    """An array of 500 numbers on disk, none of them 0."""
    chunks, shards = CUTS[request.param]
    made = zarr.create_array(tmp_path / "array", shape=(500,), dtype="uint16", chunks=chunks, shards=shards)
    made[:] = np.arange(1, 501)
    return tmp_path / "array"


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranges=st.lists(
        st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)).map(sorted), max_size=8), min_size=1, max_size=3
    )
)
def test_ranges_are_slices_one_after_the_other(array, ranges):
    opened, values = open_array(array), np.arange(1, 501, dtype=np.uint16)
    bounds = [np.array(some, dtype=np.int64).reshape(-1, 2) for some in ranges]
    found = read([Ranges(opened, one[:, 0], one[:, 1]) for one in bounds])
    for one, some in zip(found, ranges, strict=True):
        assert one.dtype == np.uint16
        np.testing.assert_array_equal(one, np.concatenate([values[:0], *(values[a:b] for a, b in some)]))


def test_files_that_are_missing_are_counted(array):
    opened, files = open_array(array), sorted((array / "c").iterdir())
    assert n_missing(opened, array) == 0
    files[0].unlink()
    assert n_missing(opened, array) == 1
    for file in files[1:]:
        file.unlink()
    (array / "c").rmdir()
    assert n_missing(opened, array) == len(files)


def test_opening_an_array_leaves_the_settings_of_zarr_as_they_are(array):
    own = "zarr.core.codec_pipeline.FusedCodecPipeline"
    with zarr.config.set({"codec_pipeline.path": own}):
        open_array(array)
        assert zarr.config.get("codec_pipeline.path") == own


def test_what_is_no_array_is_refused(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        open_array(tmp_path / "nowhere")
