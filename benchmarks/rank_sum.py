"""The rank-sum test of `metrics.differential_expression` beside illico's: the same p-values, and how fast.

    python benchmarks/rank_sum.py

illico is no dependency of the package: `pip install illico statsmodels` (0.6.0 imports statsmodels, unsaid).

Right: p-values of both against `scipy.stats.mannwhitneyu` (asymptotic, float64), gene by gene, on cells of several
kinds, dense and sparse. A difference is |p - scipy's|, and relative to scipy's where that is not 0.
Fast: simulated cells as in benchmarks/evaluation.py (log1p, 2,000 genes, 200 cells a perturbation, 1,000 control
cells), in memory as dense float32, as `evaluate` has them, or as CSR, of which ours makes one condition dense at once.

- context: all perturbations against the control cells, in one call of illico; ours sorts the control cells once;
- condition: what `evaluate` asks of one condition: predicted and observed cells, and ten halves of these, against the
  same control cells. Ours has the control cells sorted, as they are for all conditions of a context; illico is given
  all groups in one call, and sorts the control cells in it.

The engines take turns in one process. A ratio is ours over illico's of one round, of seconds and of CPU seconds of all
threads; above 1 illico is faster. Then, in processes of their own: CPU seconds of imports, of the first call, and the
share of `evaluate` that the test is. Results: benchmarks/results/rank_sum.json and rank_sum.md, whose verdict stays."""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import mannwhitneyu

from perturbdiff.metrics.differential_expression import RankSum, Sorted, rank_sum

HERE = Path(__file__).parent
CONTROL, GROUP = "control", "perturbation"
LIMIT = 1e-6
"""A p-value that differs by more, relative to scipy's, is wrong."""

BACKENDS = {"illico (Rust)": True, "illico (Numba)": False}
FORMATS: dict[str, Callable[[Any], Any]] = {"dense": np.ascontiguousarray, "CSR": sp.csr_matrix, "CSC": sp.csc_matrix}

type Groups = dict[str, Any]
"""Cells [n, genes] by the name of their group."""


def illico(cells: anndata.AnnData, threads: int, *, rust: bool) -> pd.DataFrame:
    """Every group against the control cells: p-values [groups, genes]."""
    from illico import asymptotic_wilcoxon

    found = asymptotic_wilcoxon(
        cells, is_log1p=True, group_keys=GROUP, reference=CONTROL, n_threads=threads, use_rust=rust
    )
    table: pd.DataFrame = found["p_value"].unstack()[list(cells.var_names)]  # noqa: PD010 - nothing is summed
    return table


def joined(groups: Groups) -> anndata.AnnData:
    """All groups as illico takes them."""
    parts = list(groups.values())
    x = sp.vstack(parts, format=parts[0].format) if sp.issparse(parts[0]) else np.concatenate(parts)
    labels = np.repeat(list(groups), [part.shape[0] for part in parts])
    obs = pd.DataFrame({GROUP: pd.Categorical(labels)}, index=[str(i) for i in range(len(labels))])
    return anndata.AnnData(X=x, obs=obs, var=pd.DataFrame(index=[f"gene-{i}" for i in range(x.shape[1])]))


def dense(cells: Any) -> Any:  # noqa: ANN401 - of either kind
    return cells.toarray() if sp.issparse(cells) else cells


def ours(groups: Groups, threads: int, control: Sorted | None = None) -> dict[str, RankSum]:
    """Every group against the control cells."""
    known = control or Sorted.of(dense(groups[CONTROL]))
    names = [name for name in groups if name != CONTROL]
    with ThreadPoolExecutor(threads) as pool:
        tests = pool.map(lambda name: rank_sum(Sorted.of(dense(groups[name])), known), names)
        return dict(zip(names, tests, strict=True))


def kinds() -> dict[str, Groups]:
    """Cells on which a test of ranks may go wrong."""
    rng = np.random.default_rng(0)
    counts = {name: rng.poisson(rng.gamma(0.4, 2.0, 300), (n, 300)) for name, n in ((CONTROL, 500), ("a", 90))}
    normal = {name: rng.normal(0, 1, (n, 300)) for name, n in ((CONTROL, 500), ("a", 90), ("b", 150))}
    few = rng.integers(0, 2, (8, 300))
    fixed = np.stack([np.arange(300) % 2, np.arange(300) % 4 == 1])[None]  # zero, or one, on both sides or on one
    found: dict[str, Groups] = {
        "counts, many ties": counts,
        "log1p of counts per 10^4": {
            name: np.log1p(1e4 * one / one.sum(axis=1, keepdims=True)) for name, one in counts.items()
        },
        "no ties": {name: np.abs(one) for name, one in normal.items()},
        "negative values": normal,
        "zeros and ones, 3 cells against 5": {CONTROL: few[:5], "a": few[5:]},
        "one cell": {CONTROL: counts[CONTROL], "a": counts["a"][:1]},
        "the same cells on both sides": {CONTROL: counts["a"], "a": counts["a"]},
        "genes that are constant or zero": {CONTROL: fixed[[0] * 500, 0], "a": fixed[[0] * 90, 1]},
        "far apart, p near 0": {name: np.abs(one) + 9 * (name == "a") for name, one in normal.items()},
    }
    return {kind: {name: one.astype(np.float32) for name, one in groups.items()} for kind, groups in found.items()}


def differences(kind: str, groups: Groups) -> dict[str, Any]:
    """The largest relative difference from scipy of every engine, over formats, and how many tests it has wrong."""
    names = [name for name in groups if name != CONTROL]
    exact = {name: cells.astype(np.float64) for name, cells in groups.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of genes that are constant, of which scipy's p is NaN; nothing differs, so 1
        wanted = np.array([mannwhitneyu(exact[name], exact[CONTROL], method="asymptotic").pvalue for name in names])
    wanted = np.where(np.isnan(wanted), 1.0, wanted)
    tests = ours(groups, 1)
    found = {"ours": [np.array([tests[name].p_value for name in names])]}
    for made in FORMATS.values():
        cells = joined({name: made(one) for name, one in groups.items()})
        for backend, rust in BACKENDS.items():
            found.setdefault(backend, []).append(illico(cells, 1, rust=rust).loc[names].to_numpy())
    row: dict[str, Any] = {"kind": kind, "tests": wanted.size}
    for engine, many in found.items():
        apart = np.max([np.abs(one - wanted) for one in many], axis=0)
        relative = np.divide(apart, wanted, out=np.zeros_like(apart), where=wanted > 0)
        wrong = ~(relative <= LIMIT)  # NaN is wrong
        row[engine] = {
            "relative": float(relative.max()),
            "wrong": int(wrong.sum()),
            "smallest p of these": float(wanted[wrong].min(initial=1.0)),
        }
    print(row, flush=True)
    return row


def simulated(folder: Path, perturbations: int) -> Groups:
    """Predicted cells as benchmarks/evaluation.py makes them, CSR."""
    from evaluation import simulate

    simulate(folder / "cells.h5ad", perturbations, 1, strength=0.6, predicted=True)
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    labels = cells.obs[GROUP].astype(str).to_numpy()
    return {name: sp.csr_matrix(cells.X[np.flatnonzero(labels == name)]) for name in dict.fromkeys(labels)}


def of_condition(groups: Groups) -> Groups:
    """Predicted and observed cells of one condition, and five halvings of the observed ones, with the control cells."""
    rng = np.random.default_rng(0)
    names = [name for name in groups if name != CONTROL]
    found = {CONTROL: groups[CONTROL], "predicted": groups[names[0]], "observed": groups[names[1]]}
    for halving in range(5):
        order = rng.permutation(found["observed"].shape[0])
        for side in range(2):
            found[f"half {halving} {side}"] = found["observed"][np.sort(order[side::2])]
    return found


def speeds(folder: Path, perturbations: list[int], rounds: int) -> list[dict[str, Any]]:
    """All engines in turns, on all shapes."""
    found = []
    for many in perturbations:
        context = simulated(folder, many)
        shapes = {f"context, {many} perturbations": (context, False)}
        if many == perturbations[0]:
            shapes["condition"] = (of_condition(context), True)
        for shape, (groups, is_sorted) in shapes.items():
            for form in ("dense", "CSR"):
                cells = {name: FORMATS[form](dense(one)) for name, one in groups.items()}
                control = Sorted.of(dense(cells[CONTROL])) if is_sorted else None
                known = None if is_sorted else joined(cells)  # a whole context may be in memory as it is
                for threads in (1, 2):
                    calls: dict[str, Callable[[], Any]] = {"ours": lambda: ours(cells, threads, control)}  # noqa: B023
                    for backend, rust in BACKENDS.items():
                        calls[backend] = lambda rust=rust: illico(known or joined(cells), threads, rust=rust)  # noqa: B023
                    found += [
                        {"shape": shape, "format": form, "threads": threads, "engine": engine, "rounds": took}
                        for engine, took in in_turns(calls, rounds if many == perturbations[0] else 3).items()
                    ]
                    print(found[-3:], flush=True)
    return found


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds and CPU seconds of each call in each round, after one that does not count."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if number:
                took[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return took


def cpu_of(code: str, rounds: int) -> float:
    """The median CPU seconds of a process of its own."""
    spent = []
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(spent)


def starts(rounds: int) -> dict[str, float]:
    """CPU seconds before the first p-value is there."""
    load = "import anndata, pandas, scipy.stats\n"
    data = f"import sys; sys.path.insert(0, {str(HERE)!r})\nimport numpy as np, rank_sum as own\n"
    made = "g = {n: np.eye(60, dtype='f4') for n in ('control', 'a')}\n"
    call = "own.illico(own.joined({n: own.FORMATS[%r](x) for n, x in g.items()}), 1, rust=%r)\n"
    bare = cpu_of(load, rounds)
    ready = cpu_of(load + data + made, rounds)
    return {
        "anndata, pandas, scipy.stats": bare,
        "illico beside them": cpu_of(load + "import illico\n", rounds) - bare,
        "illico and a first call, Rust": cpu_of(load + data + made + call % ("dense", True), rounds) - ready,
        "illico and a first call, Numba": cpu_of(load + data + made + call % ("dense", False), 2) - ready,
    }


SHARE = """
import sys, time
from perturbdiff.evaluation import scores
from perturbdiff.metrics import differential_expression as tests, ours
spent = [0.0]
def timed(call):
    def timing(*given):
        start = time.thread_time()
        found = call(*given)
        spent[0] += time.thread_time() - start
        return found
    return timing
tests.Sorted.of = classmethod(timed(tests.Sorted.of.__func__))
for module in (tests, ours, scores):
    module.rank_sum = timed(tests.rank_sum) if module is tests else tests.rank_sum
from perturbdiff.cli import main
sys.argv = ["perturbdiff", *sys.argv[1:]]
try:
    main()
finally:
    print("spent", spent[0], time.process_time())
"""


def shares(folder: Path) -> dict[str, tuple[float, float]]:
    """CPU seconds of sorting and testing, and of all, of `evaluate` with 20 perturbations and one job."""
    import evaluation

    files = evaluation.prepare(folder, 20)
    named = ["--perturbation", GROUP, "--control", CONTROL, "--cell-type", "cell_type", "--scale", "counts"]
    alone = [*named, "--baselines", "none"]
    cases = {
        "one model, our metrics alone": [*alone, "--suites", "ours"],
        "one model": alone,
        "one model, all baselines": ["--recipe", str(folder / "recipe.toml")],
    }
    found = {}
    for case, options in cases.items():
        given = ["--out", str(folder / case), "--cache", str(folder / f"{case}.cache"), "--jobs", "1"]
        line = [sys.executable, "-c", SHARE, "evaluate", *files, *options, *given]
        ended = subprocess.run(
            line, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        spent, every = ended.stdout.split("spent ")[1].split()[:2]
        found[case] = (float(spent), float(every))
        print(case, found[case], flush=True)
    return found


def written(kept: dict[str, Any]) -> str:
    """The tables."""
    lines = ["# The rank-sum test, ours and illico's", "", f"{kept['machine']}. `python benchmarks/rank_sum.py`", ""]
    lines += [
        "## The same p-values",
        "",
        "The largest relative difference from scipy's; wrong are those above 1e-6.",
        "",
    ]
    engines = ["ours", *BACKENDS]
    lines += [f"| cells | tests | {' | '.join(engines)} | wrong, in this order |", "|---" * 6 + "|"]
    for row in kept["differences"]:
        values = " | ".join(f"{row[engine]['relative']:.0e}" for engine in engines)
        lines.append(
            f"| {row['kind']} | {row['tests']} | {values} | {', '.join(str(row[e]['wrong']) for e in engines)} |"
        )
    lines += ["", "## Speed", "", "Medians over rounds, ratios with their quartiles.", ""]
    lines += ["| shape | cells | threads | rounds | engine | CPU seconds | ours over it, CPU | ours over it, seconds |"]
    lines += ["|---" * 8 + "|"]
    first: list[tuple[float, float]] = []
    for row in kept["speed"]:
        rounds = row["rounds"]
        first = rounds if row["engine"] == "ours" else first
        ratios = [quartiles([a[i] / b[i] for a, b in zip(first, rounds, strict=True)]) for i in (1, 0)]
        cpu = statistics.median(took[1] for took in rounds)
        shape = f"{row['shape']} | {row['format']} | {row['threads']} | {len(rounds)} | {row['engine']}"
        lines.append(f"| {shape} | {cpu:.2f} | {' | '.join([' ', ' '] if rounds is first else ratios)} |")
    lines += ["", "## Before the first p-value", "", "| what | CPU seconds |", "|---|---|"]
    lines += [f"| {what} | {seconds:.1f} |" for what, seconds in kept["start"].items()]
    lines += ["", "## The test's share of `evaluate`", "", "20 perturbations, one job.", ""]
    lines += ["| case | CPU seconds of sorting and testing | of all | share |", "|---|---|---|---|"]
    for case, (own, every) in kept["share"].items():
        lines.append(f"| {case} | {own:.1f} | {every:.1f} | {own / every:.0%} |")
    return "\n".join(lines) + "\n"


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--perturbations", type=int, nargs="+", default=[20, 60])
    parser.add_argument("--rounds", type=int, default=7, help="of the smallest context; of others 3")
    parser.add_argument("--folder", type=Path, help="for simulated files while they are there, 0.5 GB")
    parser.add_argument("--only", choices=["differences", "speed", "start", "share"], nargs="+")
    parser.add_argument("--dry", action="store_true", help="write no results")
    arguments = parser.parse_args()
    if find_spec("illico") is None or find_spec("statsmodels") is None:
        parser.error("illico or statsmodels is not installed; `pip install illico statsmodels`.")
    from loguru import logger

    logger.remove()  # it says several lines a call
    os.environ["TQDM_DISABLE"] = "1"
    out = HERE / "results"
    kept = json.loads((out / "rank_sum.json").read_text()) if (out / "rank_sum.json").exists() else {}
    versions = ", ".join(f"{name} {version(name)}" for name in ("illico", "numba", "scipy", "numpy"))
    kept["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
    with tempfile.TemporaryDirectory(prefix="rank_sum.", dir=arguments.folder) as name:
        parts: dict[str, Callable[[], Any]] = {
            "start": lambda: starts(5),
            "share": lambda: shares(Path(name) / "share"),
            "differences": lambda: [differences(*one) for one in kinds().items()],
            "speed": lambda: speeds(Path(name), arguments.perturbations, arguments.rounds),
        }
        for part, measured in parts.items():
            if arguments.only is None or part in arguments.only:
                kept[part] = measured()
                if not arguments.dry:
                    (out / "rank_sum.json").write_text(json.dumps(kept, indent=1) + "\n")
    if not all(part in kept for part in parts):
        return
    text = written(kept)
    print(text)
    if not arguments.dry:
        known = (out / "rank_sum.md").read_text() if (out / "rank_sum.md").exists() else ""
        verdict = known[known.index("\n## Verdict") :] if "## Verdict" in known else ""
        (out / "rank_sum.md").write_text(text + verdict)


if __name__ == "__main__":
    main()
