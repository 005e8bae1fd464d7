"""Whatever is refused, by whatever command: status 2, one sentence, and every file and folder as it was."""

import shutil
from pathlib import Path

import pytest

COLUMNS = "--perturbation perturbation --control control --cell-type cell_type --assay-batch assay_batch"
BASES = {
    "train": ("train RECIPE --out NEW/run --quiet --device cpu", "--max-steps 0|--preset huge|--device abacus"),
    "train on a file": (
        f"train DATA --out NEW/run --quiet --device cpu {COLUMNS} --scale counts",
        "--scale raw|--hold-out {part=|--hold-out {part='test',perturbation=['x']}|--n-genes 0|--features NONE"
        "|--layer none|--cell-type none|--control none|--preset huge|--dose none|--total-counts none",
    ),
    "pretrain": ("pretrain RECIPE --out NEW/run --quiet --device cpu", "--max-steps 0|--device abacus"),
    "finetune": ("finetune RUN RECIPE --out NEW/run --quiet --device cpu", "--max-steps 0|--device abacus"),
    "predict": (
        "predict RUN DATA --out NEW/p.h5ad --quiet --device cpu --perturbation stimulus_1 --cell-type type_3",
        "--perturbation none|--cell-type none|--steps 500|--steps 0|--guidance x|"
        "--guidance perturbation=1,perturbation=2"
        "|--scale raw|--device abacus|--part test|--features NONE|--dose 1|--cells 3|--perturbation-column none",
    ),
    "baseline": (
        "baseline ridge DATA --out NEW/b.h5ad --quiet --recipe RECIPE",
        "--part none|--scale raw|--run RUN",
    ),
    "evaluate": (
        "evaluate PREDICTED DATA --out NEW/e --quiet --suites ours --run RUN",
        "--suites none|--baselines none,none|--baselines nobody|--scale raw|--predicted-scale raw|--recipe RECIPE"
        "|--cell-type cell_type|--perturbation none|--scale log1p|--perturbation perturbation --control none",
    ),
    "evaluate undeclared": ("evaluate DATA DATA --out NEW/e --quiet --suites ours", "|--cache NEW/kept|--scale counts"),
    "report": ("report EVALUATION --out NEW/r.html --quiet", "--against nobody|--condition nothing|--against model"),
    "recipes": ("recipes", "nothing|nothing --out NEW/r.toml|--out NEW/r.toml"),
    "prepare": ("prepare RECIPE --out NEW/store --quiet", "--json"),
    "features smiles": ("features smiles TABLE --out NEW/f.parquet --quiet", "|--out NEW/f.txt"),
    "features loadings": (
        "features loadings DATA --out NEW/f.parquet --quiet",
        "|--scale raw|--scale counts --control control|--scale counts --layer none",
    ),
    "features language": (
        "features language TABLE --model NONE --out NEW/f.parquet --quiet --device cpu",
        "|--device x",
    ),
    "demo": ("demo --out NEW/demo --quiet", "--device abacus"),
    "split": ("split RECIPE --quiet", ""),
    "inspect": ("inspect RUN", ""),
}
"""What each command would do, and options, each of which makes it refuse."""

INPUTS = {"RECIPE": ".toml", "DATA": ".h5ad", "PREDICTED": ".h5ad", "RUN": "", "EVALUATION": "", "TABLE": ".csv"}
"""The inputs of a command, each of which may be missing, a folder with nothing in it, or no file of its kind."""

OUTPUTS = "NEW/"


def _cases():
    for name, (line, options) in BASES.items():
        words = line.split()
        for option in options.split("|"):
            if option or "undeclared" in name or name.startswith("features"):
                yield f"{name}: {option or 'as it is'}", f"{line} {option}"
        for kind in INPUTS:
            places = [i for i, word in enumerate(words) if word == kind]
            for i in places:
                for bad in ("NONE", "EMPTY", "GARBAGE"):
                    yield f"{name}: {kind} {i} is {bad}", " ".join([*words[:i], bad + INPUTS[kind], *words[i + 1 :]])
        if OUTPUTS in line:
            yield f"{name}: an output in a file", line.replace(OUTPUTS, "FILE/")
            yield f"{name}: an output in a file, deeper", line.replace(OUTPUTS, "FILE/a/b/")


CASES = dict(_cases())


def _tree(folder):
    """Every file with its bytes, and every folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def place(screen, predicted, tmp_path_factory):
    """A folder of inputs that are as they should be, and of some that are not; what is written to belongs in `new`."""
    folder = tmp_path_factory.mktemp("refusals")
    for path, name in ((screen.recipe, "RECIPE.toml"), (screen.data, "screen.h5ad"), (predicted, "PREDICTED.h5ad")):
        shutil.copy(path, folder / name)
    shutil.copy(screen.data, folder / "DATA.h5ad")
    shutil.copytree(screen.run, folder / "RUN")
    (folder / "FILE").write_text("in the way")
    (folder / "TABLE.csv").write_text("label,nothing\na,b\n")
    for suffix in ("", ".toml", ".h5ad", ".csv"):
        (folder / f"GARBAGE{suffix}").write_text("neither this nor that\n[")
        (folder / f"EMPTY{suffix}").mkdir()
    evaluation = folder / "EVALUATION"
    evaluation.mkdir()
    for name, text in EVALUATION.items():
        (evaluation / name).write_text(text)
    return folder


EVALUATION = {
    "metrics.csv": "suite,method,perturbation,cell_type,metric,value\nours,model,p,T,mae,1\nours,x,p,T,mae,2\n",
    "overall.csv": "suite,method,metric,value,low,high,conditions,undefined,scaled,scaled_low,scaled_high\n"
    "ours,model,mae,1,nan,nan,1,0,nan,nan,nan\nours,x,mae,2,nan,nan,1,0,nan,nan,nan\n",
    "metrics.json": '{"methods": [{"name": "model", "kind": "predicted"}, {"name": "x", "kind": "baseline"}]}',
}


def _line(place, text):
    known = {"RECIPE": "RECIPE.toml", "DATA": "DATA.h5ad", "PREDICTED": "PREDICTED.h5ad", "TABLE": "TABLE.csv"}
    for word in text.split():
        if word.startswith("NEW/"):
            yield str(place / "new" / "deep" / word.removeprefix("NEW/"))
        elif word.partition("/")[0].partition(".")[0] in {*INPUTS, "NONE", "EMPTY", "GARBAGE", "FILE"}:
            yield str(place / known.get(word, word))
        else:
            yield word


@pytest.mark.parametrize("case", CASES)
def test_a_refused_command_says_one_sentence_and_leaves_every_file_and_folder_as_it_was(cli, place, monkeypatch, case):
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = _tree(place)
    ended = cli(*_line(place, CASES[case]))
    after = _tree(place)
    for path in sorted(set(after) - set(before), reverse=True):  # for the next case
        (shutil.rmtree if after[path] is None else _remove)(path)
    assert ended.refused(""), ended
    assert after == before


def _remove(path):
    Path(path).unlink(missing_ok=True)
