"""A made-up evaluation on disk: the files that a report reads, in the shape in which `evaluate` writes them."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

METRICS = {
    "ours": {
        "energy_distance": ("lower", 0.30, 0.05),
        "mmd": ("lower", 0.02, 0.003),
        "pearson_of_change": ("higher", 0.40, 0.95),
        "spread_ratio": ("near 1", 0.70, 1.0),
        "zeros_observed": ("none", 0.55, 0.55),
    },
    "paper": {
        "R2": ("higher", 0.97, 0.99),
        "PDCorr": ("higher", 0.40, 0.93),
        "MAE": ("lower", 0.05, 0.01),
        "MSE": ("lower", 0.004, 0.0006),
        "PDS_L1": ("higher", 0.55, 0.98),
        "PDS_L2": ("higher", 0.55, 0.98),
        "PDS_cosine": ("higher", 0.60, 0.99),
        "DEOver": ("higher", 0.20, 0.70),
        "DEPrec": ("higher", 0.20, 0.72),
        "DirAgr": ("higher", 0.65, 0.98),
        "LFCSpear": ("higher", 0.30, 0.85),
        "AUROC": ("higher", 0.60, 0.92),
        "AUPRC": ("higher", 0.35, 0.85),
        "ES": ("higher", 0.30, 0.80),
    },
    "vcc2026": {"overall_score": ("higher", 0.10, 0.80)},
}
"""By suite and metric: what is better, and the value of the baseline and of the ceiling."""

STRANGE = ("<script>alert(1)</script>", 'A & "B"', "$x_1$", "nan")
"""Labels that a page must be able to hold."""

BASELINES = ("control", "context mean", "ridge")


def build(
    folder: Path,
    *,
    files: dict[str, float] | None = None,
    baselines: dict[str, float] | None = None,
    n_perturbations: int = 8,
    cell_types: tuple[str, ...] = ("T cells", "B cells"),
    n_genes: int = 60,
    n_cells: int = 20,
    seed: int = 0,
) -> Path:
    """Write a whole evaluation; a method's number is how far it is from the baseline (0) to the ceiling (1)."""
    rng = np.random.default_rng(seed)
    files = {"model": 0.6} if files is None else files
    baselines = dict(zip(BASELINES, (-0.2, 0.0, 0.2), strict=True)) if baselines is None else baselines
    skill = {**files, **baselines, "ceiling": 1.0}
    names = [*STRANGE, *(f"gene {i}" for i in range(n_perturbations))][:n_perturbations]
    conditions = [(name, kind) for name in names for kind in cell_types]
    folder.mkdir(parents=True, exist_ok=True)
    table = _table(rng, skill, conditions)
    table.to_csv(folder / "metrics.csv", index=False, na_rep="nan")
    overall = _means(rng, table, ["suite", "method", "metric"], skill)
    overall.to_csv(folder / "overall.csv", index=False, na_rep="nan")
    contexts = _means(rng, table, ["suite", "method", "cell_type", "metric"], skill)
    contexts.to_csv(folder / "contexts.csv", index=False, na_rep="nan")
    _genes(rng, files, conditions, n_genes).to_parquet(folder / "genes.parquet")
    _cells(rng, files, conditions, n_cells).to_parquet(folder / "cells.parquet")
    (folder / "metrics.json").write_text(json.dumps(_content(files, baselines)))
    return folder


def change_content(folder: Path, **changes) -> None:
    """Replace parts of metrics.json; None removes one."""
    path = folder / "metrics.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def _table(rng, skill, conditions):
    rows = []
    hardness = rng.normal(0, 0.15, len(conditions))
    for suite, metrics in METRICS.items():
        for metric, (_, low, high) in metrics.items():
            for method, amount in skill.items():
                values = low + (high - low) * (amount + 0.5 * hardness + rng.normal(0, 0.08, len(conditions)))
                rows += [
                    (suite, method, *condition, metric, value)
                    for condition, value in zip(conditions, values, strict=True)
                ]
    return pd.DataFrame(rows, columns=["suite", "method", "perturbation", "cell_type", "metric", "value"])


def _means(rng, table, keys, skill):
    groups = table.groupby(keys, sort=False)["value"]
    found = groups.mean().reset_index()
    half = 1.96 * (groups.std(ddof=0) / np.sqrt(groups.size())).to_numpy()
    found = found.assign(low=found["value"] - half, high=found["value"] + half, conditions=groups.size().to_numpy())
    ends = {(suite, metric): ends[1:] for suite, own in METRICS.items() for metric, ends in own.items()}
    pairs = zip(found["suite"], found["metric"], strict=True)
    low, high = np.array([ends[pair] for pair in pairs], dtype=float).T
    width = np.where(high == low, np.nan, high - low)
    scaled = {name: (found[column] - low) / width for name, column in _SCALED.items()}
    ends = np.sort([scaled["scaled_low"], scaled["scaled_high"]], axis=0)
    scaled |= {"scaled_low": ends[0], "scaled_high": ends[1]}
    return found.assign(undefined=0, **scaled)


_SCALED = {"scaled": "value", "scaled_low": "low", "scaled_high": "high"}


def _genes(rng, files, conditions, n_genes):
    parts = []
    names = np.array([f"G{i:04d}" for i in range(n_genes)])
    for place, (perturbation, cell_type) in enumerate(conditions):
        truth = rng.random(n_genes) < 0.15 + 0.02 * (place % 5)
        change = np.where(truth, rng.normal(0, 0.8, n_genes), rng.normal(0, 0.05, n_genes))
        for side, skill in {"observed": 1.0, **files}.items():
            moved = skill * change + rng.normal(0, 0.1, n_genes)
            evidence = np.clip(14 * moved**2 + rng.exponential(0.3, n_genes), 0, 320)
            adjusted = np.minimum(1.0, 10.0**-evidence)
            columns = {"side": side, "perturbation": perturbation, "cell_type": cell_type, "gene": names}
            numbers = {"change": moved, "p_value": adjusted / 3, "p_adjusted": adjusted, "mean": np.abs(moved) + 0.2}
            parts.append(pd.DataFrame(columns | numbers))
    return pd.concat(parts, ignore_index=True)


def _cells(rng, files, conditions, n_cells):
    kinds = list(dict.fromkeys(cell_type for _, cell_type in conditions))
    parts = [
        _cloud(rng, "control", "control", kind, (6.0 * place, 0.0), 2 * n_cells) for place, kind in enumerate(kinds)
    ]
    for place, (perturbation, cell_type) in enumerate(conditions):
        angle = 2 * np.pi * place / len(conditions)
        origin = 6.0 * kinds.index(cell_type)
        for side, skill in {"observed": 1.0, **files}.items():
            centre = (origin + 2.5 * skill * np.cos(angle), 2.5 * skill * np.sin(angle))
            parts.append(_cloud(rng, side, perturbation, cell_type, centre, n_cells))
    return pd.concat(parts, ignore_index=True)


def _cloud(rng, side, perturbation, cell_type, centre, n):
    pc1, pc2 = rng.normal(0, 0.7, (2, n)) + np.array(centre)[:, None]
    return pd.DataFrame({"side": side, "perturbation": perturbation, "cell_type": cell_type, "pc1": pc1, "pc2": pc2})


def _content(files, baselines):
    steps = range(0, 2001, 100)
    history = [
        {"step": step, "loss": 0.9 * np.exp(-step / 500) + 0.1, "validation_energy": 0.3 * np.exp(-step / 700) + 0.2}
        for step in steps
    ]
    legend = {
        suite: {
            name: {"better": better, "meaning": f"what {name} measures", "range": "0 to 1"}
            for name, (better, _, _) in own.items()
        }
        for suite, own in METRICS.items()
    }
    kinds = {**dict.fromkeys(files, "predicted"), **dict.fromkeys(baselines, "baseline"), "ceiling": "ceiling"}
    return {
        "legend": legend,
        "methods": [{"name": name, "kind": kind, "about": f"what {name} is"} for name, kind in kinds.items()],
        "notes": ["2 observed conditions are not predicted and are left out."],
        "warnings": [
            {"kind": "metric", "text": "R2 (paper) does not tell the ceiling from 'context mean': it says little."},
            {"kind": "collapse", "text": "the perturbations predicted by 'model' differ by 0.31 of the observed ones."},
        ],
        "baseline": "context mean",
        "ceiling": "ceiling",
        "headline": ["R2", "energy_distance", "PDCorr", "PDS_L1", "DEOver"],
        "versions": {"perturbdiff": "0.1.0", "cell-eval": "0.8.2", "numpy": "2.3.0"},
        "settings": {"seed": 0, "files": list(files), "scale": {"observed": "counts", "predicted": "log1p"}},
        "variance": [0.214, 0.087],
        "audit": {"hash": "0f3a", "leaks": []},
        "run": {"history": history, "settings": {"training": {"max_steps": 2000}}},
        "overall": [],
        "conditions": [],
    }


class Element:
    """An element of a page: its tag, attributes, and the elements and texts inside."""

    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.inside = tag, attributes, []

    @property
    def text(self):
        """All text inside, with single spaces."""
        return " ".join(self._joined().split())

    def all(self, tag=None, **attributes):
        """The elements inside of a tag and with some attributes; class_ for a class among others."""
        wanted = {key: value for key, value in attributes.items() if key != "class_"}
        found = []
        for one in self.inside:
            if isinstance(one, Element):
                classes = (one.attributes.get("class") or "").split()
                fits = tag in {None, one.tag} and ("class_" not in attributes or attributes["class_"] in classes)
                if fits and all(one.attributes.get(key) == value for key, value in wanted.items()):
                    found.append(one)
                found += one.all(tag, **attributes)
        return found

    def one(self, tag=None, **attributes):
        """The only such element."""
        (found,) = self.all(tag, **attributes)
        return found

    def _joined(self):
        parts = []
        for one in self.inside:
            if isinstance(one, str):
                parts.append(one)
            else:
                parts.append(one._joined() if one.tag in {"code", "wbr"} else f" {one._joined()} ")
        return "".join(parts)


class _Reader(HTMLParser):
    """Makes elements of a page, and refuses one whose tags do not match."""

    VOID = ("meta", "link", "wbr", "br", "hr")

    def __init__(self):
        super().__init__()
        self.open = [Element("", {})]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].inside.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_startendtag(self, tag, attrs):
        self.open[-1].inside.append(Element(tag, dict(attrs)))

    def handle_data(self, data):
        self.open[-1].inside.append(data)


def read_page(path: Path) -> Element:
    """The elements of a page."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert len(reader.open) == 1, f"<{reader.open[-1].tag}> is not closed"
    return reader.open[0]


@pytest.fixture
def elements():
    """Read a page: elements(path)."""
    return read_page


@pytest.fixture(scope="session")
def evaluation_folder(tmp_path_factory) -> Path:
    """Shared by many tests, which must leave it as it is."""
    return build(tmp_path_factory.mktemp("evaluation") / "eval")


@pytest.fixture
def make_folder(tmp_path):
    """Make an evaluation of one's own: make_folder(files=...); and change its metrics.json by `change`."""

    def make(**options):
        return build(tmp_path / "eval", **options)

    return make


@pytest.fixture
def change():
    return change_content
