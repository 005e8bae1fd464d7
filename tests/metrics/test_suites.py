"""There are three suites of metrics, and each says what its numbers mean."""

import pytest

from perturbdiff.metrics import suites
from perturbdiff.metrics.suites import Suite, check_suites, is_installed, legend


def test_a_suite_that_there_is_not_or_that_is_not_installed_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"there is no suite 'papers'; choose of ours, paper, vcc2026, families\."):
        check_suites(["ours", "papers"])
    monkeypatch.setattr(suites, "find_spec", lambda name: None)
    assert is_installed("ours")
    assert not is_installed("paper")
    with pytest.raises(ValueError, match=r"the suite 'paper' needs the package 'cell_eval', which is not installed"):
        Suite.of("paper")


def test_the_legend_and_the_settings_say_what_every_suite_is():
    found = legend(["ours", "paper", "vcc2026"])
    for metrics in found.values():
        for said in metrics.values():
            assert set(said) == {"better", "meaning", "range"}
            assert all(said.values())
    assert len(found["paper"]) == 14
    said = suites.settings(["ours", "paper", "vcc2026"])
    assert said["paper: fdr_threshold"] == "0.05"
    assert said["vcc2026: preset"] == "vcc2026"
    assert {"perturbdiff", "cell-eval", "cell-eval2", "pdex", "numpy", "scipy", "anndata"} <= set(suites.versions())
