import errno
import json
import os
import shutil
import subprocess
import sys
import time
from contextvars import Context

import anndata
import numpy as np
import pytest

from perturbdiff.recipes.dataset import recipe_from_mapping
from perturbdiff.simulation.screen import simulate
from perturbdiff.store import build, spill
from perturbdiff.store.build import build_store
from perturbdiff.store.layout import file_hash
from perturbdiff.store.workdir import remove, unit, work_folder

MAPPING = {
    "name": "x",
    "control": "control",
    "files": ["*.h5ad"],
    "columns": {"perturbation": "perturbation", "cell_type": "cell_type", "assay_batch": "assay_batch"},
    "expression": {"scale": "counts"},
}
RECIPE = recipe_from_mapping(MAPPING, "x")


class Killed(BaseException):
    pass


def tree(store):
    return {str(path.relative_to(store)): file_hash(path) for path in store.rglob("*") if path.is_file()}


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of two files, made into a store of a few parts from six chunks."""
    adata = simulate(
        "interaction",
        n_genes=34,
        n_cell_types=2,
        n_assay_batches=2,
        n_perturbations=2,
        cells_per_group=5,
        control_cells_per_group=6,
        seed=0,
    )
    assert adata.n_obs == 64
    for i in range(2):
        adata[32 * i : 32 * (i + 1)].copy().write_h5ad(tmp_path / f"{i}.h5ad")
    monkeypatch.setattr(spill, "PART_VALUES", 2200)
    monkeypatch.setattr(build, "_CELLS", 14)
    return tmp_path


@pytest.fixture
def expected(data):
    build_store(RECIPE, data, data / "expected.store")
    return tree(data / "expected.store")


def replace_until(monkeypatch, n_times, error):
    """Let files be moved into place so many times, then raise."""
    replace, count = os.replace, 0

    def counted(*arguments, **more):
        nonlocal count
        count += 1
        if count > n_times:
            raise error
        return replace(*arguments, **more)

    monkeypatch.setattr(os, "replace", counted)
    return lambda: count


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")])
def test_whenever_it_is_interrupted_it_goes_on_to_the_same_store(data, expected, error):
    with pytest.MonkeyPatch.context() as patch:
        count = replace_until(patch, 10**9, error)
        build_store(RECIPE, data, data / "whole.store")
        n_moves = count()
    assert tree(data / "whole.store") == expected
    for k in np.unique(np.linspace(0, n_moves - 1, 7).astype(int)).tolist():
        out = data / f"{k}.store"
        with pytest.MonkeyPatch.context() as patch:
            replace_until(patch, k, error)
            if isinstance(error, Killed):
                with pytest.raises(Killed):
                    build_store(RECIPE, data, out)
            else:
                sentence = r"there is no space left on the disk of '.*'; free some and run this again, which goes on"
                with pytest.raises(ValueError, match=sentence):
                    build_store(RECIPE, data, out)
        assert not out.exists()
        build_store(RECIPE, data, out)
        assert tree(out) == expected
        assert hidden(data) == []


def test_what_is_done_is_not_done_again(data, expected):
    out, spilled = data / "x.store", []

    def until_the_third(items):
        for item in items:
            if hasattr(item, "start") and not hasattr(item, "n_parts"):
                spilled.append(item)
                if len(spilled) == 4:
                    raise Killed
            yield item

    with pytest.raises(Killed):
        build_store(RECIPE, data, out, track=until_the_third)
    first = spilled[:3]
    spilled[:] = [None] * 10
    build_store(RECIPE, data, out, track=until_the_third)
    assert not set(first) & set(spilled[10:])
    assert tree(out) == expected


def begun(data, out):
    """A store whose making stopped after the first chunk."""

    def one(items):
        if items and hasattr(items[0], "file"):
            yield items[0]
            raise Killed
        yield from items

    with pytest.raises(Killed):
        build_store(RECIPE, data, out, track=one)


def test_another_recipe_or_file_is_refused_until_told_to_begin_anew(data, expected):
    out = data / "x.store"
    begun(data, out)
    other = recipe_from_mapping({**MAPPING, "name": "y"}, "y")
    with pytest.raises(
        ValueError, match="the recipe has changed since the making of this store was begun; give --over"
    ):
        build_store(other, data, out)
    os.utime(data / "1.h5ad", ns=(1, 1))
    with pytest.raises(ValueError, match=r"1 files have changed since .*1.h5ad'; give --overwrite to begin anew"):
        build_store(RECIPE, data, out)
    build_store(RECIPE, data, out, overwrite=True)
    assert tree(out) == expected


@pytest.mark.parametrize("fault", ["gone", "cut short", "changed"])
def test_a_file_that_fails_midway_is_named_and_what_is_done_stays(data, expected, fault, said):
    out, path = data / "x.store", data / "1.h5ad"
    shutil.copy2(path, data / "kept")

    def spoiled(items):
        for item in items:
            if getattr(item, "file", 0) == 1 and item.start > 0:
                if fault == "gone":
                    path.unlink(missing_ok=True)
                elif fault == "cut short":
                    os.truncate(path, 3000)
                else:
                    os.utime(path, ns=(1, 1))
            yield item

    with pytest.raises((ValueError, FileNotFoundError), match=r"1.h5ad' (is gone|is cut short|changed|cannot be read)"):
        build_store(RECIPE, data, out, track=spoiled)
    assert not out.exists()
    shutil.copy2(data / "kept", path)
    said.clear()
    build_store(RECIPE, data, out)
    assert "Going on with 'x.store'" in said[0]
    assert tree(out) == expected


def test_what_was_read_of_a_folder_that_changed_meanwhile_is_not_kept(data, expected):
    anndata.read_h5ad(data / "1.h5ad").write_zarr(data / "1.zarr")
    recipe = recipe_from_mapping({**MAPPING, "files": ["0.h5ad", "1.zarr"]}, "x")
    lost = data / "1.zarr" / "X" / "data" / "c" / "0"

    def spoiled(items):
        for item in items:
            if getattr(item, "file", 0) == 1 and item.start > 0 and lost.exists():
                shutil.copytree(data / "1.zarr", data / "kept")
                lost.unlink()
            yield item

    with pytest.raises(ValueError, match=r"1.zarr' changed while it was read; put back what it was"):
        build_store(recipe, data, data / "x.store", track=spoiled)
    spills = [path.name for path in (data / ".x.store.partial" / "spills").iterdir()]
    assert spills
    assert all(name.startswith("00000-") for name in spills)
    with pytest.raises(ValueError, match=r"1 files have changed since .*1.zarr'"):
        build_store(recipe, data, data / "x.store")
    with pytest.raises(ValueError, match=r"1.zarr' is not whole: parts of its array 'X/data' are missing"):
        build_store(recipe, data, data / "y.store")
    shutil.rmtree(data / "1.zarr")
    (data / "kept").rename(data / "1.zarr")
    build_store(recipe, data, data / "x.store")
    some = "parts/00000.zarr/X/data/c/0"
    assert tree(data / "x.store")[some] == expected[some]


def test_what_stays_behind_a_finished_store_does_no_harm(data, expected):
    out = data / "x.store"
    rmtree = shutil.rmtree

    def all_but_the_folder(path, **more):
        if path.suffix != ".partial":
            rmtree(path, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", all_but_the_folder)
        build_store(RECIPE, data, out)
    assert hidden(data) == [".x.store.partial"]
    shutil.rmtree(out)
    build_store(RECIPE, data, out)
    assert tree(out) == expected
    assert hidden(data) == []


def test_one_process_at_a_time_makes_a_store(data):
    out = data / "x.store"
    with (
        work_folder(out, overwrite=False),
        pytest.raises(ValueError, match=r"another process is making .*x.store'; wait until it has ended"),
    ):
        Context().run(build_store, RECIPE, data, out)  # as another process: it holds nothing yet
    assert not (data / ".x.store.partial").exists()
    build_store(RECIPE, data, out)


def test_bad_input_leaves_nothing_behind(data):
    before = sorted(data.iterdir())
    wrong = recipe_from_mapping({**MAPPING, "control": "contol"}, "x")
    with pytest.raises(ValueError, match=r"no cell has the control label 'contol'.*the nearest is 'control'"):
        build_store(wrong, data, data / "x.store")
    assert sorted(data.iterdir()) == before


def test_a_folder_that_cannot_be_written_is_refused(data):
    (data / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written \(.*\); choose a folder that you may write to"):
        build_store(RECIPE, data, data / "file" / "x.store")


def test_a_unit_that_fails_is_not_there(tmp_path):
    def half():
        with unit(tmp_path / "a") as partial:
            partial.write_text("half")
            raise Killed

    with pytest.raises(Killed):
        half()
    assert not (tmp_path / "a").exists()
    with unit(tmp_path / "a") as partial:
        partial.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


PROGRAM = """
import json, sys
from pathlib import Path
from perturbdiff.recipes.dataset import recipe_from_mapping
from perturbdiff.store import build, spill
from perturbdiff.store.build import build_store
spill.PART_VALUES, build._CELLS = 200_000, 1000
folder = Path(sys.argv[1])
recipe = recipe_from_mapping(json.loads(sys.argv[2]), "x")
print("ready", flush=True)
build_store(recipe, folder, folder / sys.argv[3])
"""


def started(folder, name):

    command = [sys.executable, "-c", PROGRAM, str(folder), json.dumps(MAPPING), name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with process.stdout as said:
        assert said.readline() == "ready\n"
    return process


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_store(tmp_path, rng):
    adata = simulate("interaction", n_genes=40, cells_per_group=230, control_cells_per_group=230, seed=0)
    for i in range(2):
        adata[i::2].copy().write_h5ad(tmp_path / f"{i}.h5ad")
    assert adata.n_obs > 20_000
    process = started(tmp_path, "expected.store")
    began = time.monotonic()
    assert process.wait(300) == 0
    seconds = time.monotonic() - began
    expected = tree(tmp_path / "expected.store")
    n_killed = 0
    while n_killed < 10:
        process = started(tmp_path, "x.store")
        try:
            process.wait(rng.uniform(0, seconds / 3))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            n_killed += 1
            assert not (tmp_path / "x.store").exists() or tree(tmp_path / "x.store") == expected
        if (tmp_path / "x.store").exists():
            assert tree(tmp_path / "x.store") == expected
            shutil.rmtree(tmp_path / "x.store")
    process = started(tmp_path, "x.store")
    assert process.wait(300) == 0
    assert tree(tmp_path / "x.store") == expected
    assert hidden(tmp_path) == []


@pytest.mark.slow
def test_on_a_disk_that_is_really_full_it_says_so_and_goes_on_when_there_is_space(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        adata = simulate("interaction", n_genes=300, cells_per_group=80, seed=0)
        adata.write_h5ad(tmp_path / "a.h5ad")
        for memory_of_the_disk in ("1m", "2m", "3m", "4m"):
            subprocess.run(["mount", "-o", f"remount,size={memory_of_the_disk}", str(disk)], check=True)
            with pytest.raises(ValueError, match="there is no space left on the disk of"):
                build_store(RECIPE, tmp_path, disk / "x.store")
            assert hidden(disk) == [".x.store.partial"]
            assert len(list(disk.iterdir())) == 1
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        build_store(RECIPE, tmp_path, disk / "x.store")
        build_store(RECIPE, tmp_path, tmp_path / "expected.store")
        assert tree(disk / "x.store") == tree(tmp_path / "expected.store")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_another_thread_removes_at_the_same_time_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "x" / "y").mkdir(parents=True)
    for name in ("x/a", "x/b", "x/y/c"):
        (tmp_path / name).touch()
    unlink = os.unlink

    def after_another(path, **more):
        unlink(path, **more)
        unlink(path, **more)

    monkeypatch.setattr(os, "unlink", after_another)
    remove(tmp_path / "x")
    assert not (tmp_path / "x").exists()
