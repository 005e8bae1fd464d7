"""Suites of metrics: our own, and those that other libraries compute on whole contexts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from perturbdiff.metrics.ours import CONTEXT_METRICS, METRICS
from perturbdiff.metrics.tables import FAMILIES, OURS, SUITES

PAPER, VCC = "paper", "vcc2026"

_PLACES = {
    PAPER: ("perturbdiff.metrics.cell_eval", "cell_eval", "PAPER"),
    VCC: ("perturbdiff.metrics.vcc", "cell_eval2", "VCC"),
}
"""Of each suite the module, the library, and what names in the module begin with."""

PACKAGES = ("perturbdiff", "cell-eval", "cell-eval2", "pdex", "numpy", "scipy", "anndata", "umap-learn")
"""What numbers depend on."""

type Legend = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Suite:
    """A suite of another library.

    Attributes:
        name: in the tables.
        metrics: what each metric means; objects with name, better, meaning, range.
        side: makes what the suite judges, of an AnnData, a control label and a test of differential expression or None.
        test: the differential expression of a side.
        judge: of a predicted and an observed side, the metrics by perturbation; those of a context under "".
        settings: that the library is run with.
    """

    name: str
    metrics: Sequence[Any]
    side: Callable[..., Any]
    test: Callable[..., Any]
    judge: Callable[..., Mapping[str, Mapping[str, float]]]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, name: str) -> "Suite":
        """The suite of a name.

        Raises:
            ValueError: there is no such suite, or its library is not installed.
        """
        check_suites([name])
        place, library, prefix = _PLACES[name]
        if not is_installed(name):
            raise ValueError(f"the suite {name!r} needs the package {library!r}, which is not installed; leave it out.")
        module: Any = import_module(place)
        judge = getattr(module, f"{prefix.lower()}_metrics")
        metrics, settings = getattr(module, f"{prefix}_METRICS"), getattr(module, f"{prefix}_SETTINGS")
        return cls(name, metrics, module.Side, module.differential_expression, judge, settings)


def is_installed(name: str) -> bool:
    """Whether the library of a suite is there."""
    return name not in _PLACES or find_spec(_PLACES[name][1]) is not None


def check_suites(names: Sequence[str]) -> None:
    """Refuse a suite that there is not.

    Raises:
        ValueError: naming it.
    """
    for name in names:
        if name not in SUITES:
            raise ValueError(f"there is no suite {name!r}; choose of {', '.join(SUITES)}.")


def legend(names: Sequence[str], of_families: Sequence[Any] = ()) -> dict[str, Legend]:
    """What each metric of each suite means, which direction is better, and its range."""
    metrics: dict[str, Sequence[Any]] = {OURS: (*METRICS, *CONTEXT_METRICS), FAMILIES: of_families}
    metrics |= {name: Suite.of(name).metrics for name in names if name in _PLACES}
    return {
        suite: {
            metric.name: {key: str(getattr(metric, key, "")) for key in ("better", "meaning", "range")}
            for metric in metrics[suite]
        }
        for suite in names
    }


def settings(names: Sequence[str]) -> dict[str, str]:
    """What the libraries of the suites are told, by the suite's name and the setting's."""
    return {
        f"{name}: {key}": str(value)
        for name in names
        if name in _PLACES
        for key, value in Suite.of(name).settings.items()
    }


def versions() -> dict[str, str]:
    """The versions of what numbers depend on; those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
