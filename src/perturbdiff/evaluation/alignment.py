"""Which conditions of predicted files and an observed file are judged, on which genes and from which control cells.

Conditions are those of `conditions`: apart for every assay batch where the predictions and the observed cells name it.
Genes are matched by name and only the shared ones count. Control cells are those of the observed file: they are the
truth, whatever a predicted file holds under the control label.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbdiff.cells.controls import FEWEST
from perturbdiff.evaluation.pairs import File, Pairs, Rows, control_rows, names_batches, perturbed_rows
from perturbdiff.metrics.conditions import APART, Condition, Pooling, target_notes
from perturbdiff.spelling import nearest


def align(
    predicted: Mapping[str, File],
    observed: File,
    *,
    conditions: Collection[tuple[str, ...]] | None = None,
    pooling: Pooling = APART,
    apart: NDArray[np.bool_] | None = None,
    predicted_controls: bool = False,
    seed: int = 0,
) -> Pairs:
    """Match predicted files (by name) and the observed file: conditions, genes and control cells.

    Args:
        predicted: one or several files; the conditions that all of them hold are judged.
        observed: the cells that they are judged against.
        conditions: (perturbation, cell type) or (perturbation, cell type, assay batch) to judge, all where None.
        pooling: which (perturbation, cell type) are judged over all assay batches; all of them where a file names none.
        apart: observed cells that take no part [n], such as those that trained.
        predicted_controls: whether control cells come from the first predicted file that has any, in place of the
            observed one.
        seed: draws control cells where there are too many.

    Raises:
        ValueError: nothing is predicted; no predicted condition is observed, or none with two cells on either side;
            one that was asked for is not there; no gene is shared; a cell type has fewer than two control cells.
    """
    if not predicted:
        raise ValueError("no predicted file is given; name at least one.")
    for name, cells in (*predicted.items(), ("observed", observed)):
        if cells.control is None:
            raise ValueError(
                f"{name!r} names no perturbation column and control label, so no cell of it is perturbed; name both."
            )
    pooling, notes = _pooled(predicted, observed, pooling)
    chosen, more = _agreed(predicted, observed, conditions, pooling, apart)
    genes, gene_notes = _shared_genes(predicted, observed)
    controls, said = _controls(predicted, observed, predicted=predicted_controls)
    _check_control_cells(controls, chosen)
    pairs = Pairs(observed, controls, tuple(chosen), tuple(genes), (), seed, pooling, apart)
    named = sum(pairs.targets(condition).size > 0 for condition in chosen)
    after = (*gene_notes, *said, *pairs.control_notes(), *target_notes(named, len(chosen)))
    return replace(pairs, notes=(*notes, *more, *after))


def has_controls(cells: File) -> bool:
    """Whether a file holds control cells."""
    return bool(cells.is_control.any())


def _pooled(predicted: Mapping[str, File], observed: File, pooling: Pooling) -> tuple[Pooling, list[str]]:
    """The pooling, of all conditions where a file doesn't name assay batches, and a sentence on that."""
    sides = {**predicted, "observed": observed}
    without = [name for name, cells in sides.items() if not names_batches(cells)]
    if pooling.everything or not without:
        return pooling, []
    notes = []
    if len(without) < len(sides):
        notes.append(f"{without[0]!r} names no assay batches, so conditions are judged over all batches together.")
    return Pooling(everything=True), notes


def _agreed(
    predicted: Mapping[str, File],
    observed: File,
    conditions: Collection[tuple[str, ...]] | None,
    pooling: Pooling,
    apart: NDArray[np.bool_] | None,
) -> tuple[list[Condition], list[str]]:
    """The conditions to judge, sorted, and what was left out."""
    truth = perturbed_rows(observed, pooling, apart)
    rows = {name: perturbed_rows(cells, pooling) for name, cells in predicted.items()}
    for name, groups in rows.items():
        if not groups:
            raise ValueError(
                f"predicted file {name!r} holds no predicted cells, only control cells; give one that does."
            )
    everything = truth if apart is None else perturbed_rows(observed, pooling)
    common = set.intersection(*(set(groups) for groups in rows.values()))
    if conditions is not None:
        common = _wanted(conditions, {"the observed file": everything, **rows})
    else:
        _require(set.union(*(set(groups) for groups in rows.values())), everything)
    if not common:
        raise ValueError(
            "no condition is left to judge: the predicted files have none in common; judge them one by one."
        )
    if not common & set(truth):
        _refuse_unobserved(min(common, key=lambda one: one.place), everything)
    sides = [truth, *rows.values()]
    few = {one for one in common if one in truth and min(side[one].size for side in sides) < FEWEST}
    chosen = sorted((one for one in common if one in truth and one not in few), key=lambda one: one.place)
    if not chosen:
        one = min(few, key=lambda one: one.place)
        side = next(name for name, groups in (*rows.items(), ("observed", truth)) if groups[one].size < FEWEST)
        more = f", as have {len(few) - 1} others in a file" if len(few) > 1 else ""
        raise ValueError(
            f"{str(one)!r} has one cell in {side!r}{more}, and a distribution is judged on two at least; give more "
            "cells, or judge over all assay batches together with --pool-batches."
        )
    return chosen, _left_out(rows, truth, common, few)


def _wanted(conditions: Collection[tuple[str, ...]], sides: Mapping[str, Mapping[Condition, Rows]]) -> set[Condition]:
    """The conditions that were asked for, each of which every side must hold."""
    found: set[Condition] = set()
    for asked in dict.fromkeys(map(tuple, conditions)):
        for name, groups in sides.items():
            held = {one for one in groups if tuple(one)[: len(asked)] == asked}
            if not held:
                where = name if name == "the observed file" else f"the predicted file {name!r}"
                advice = nearest(str(Condition(*asked)), map(str, groups))
                raise ValueError(
                    f"{where} has no cells of {str(Condition(*asked))!r}; {advice}; correct the label or leave the "
                    "condition out."
                )
            found = found | held
    return {one for one in found if all(one in groups for groups in sides.values())}


def _require(predicted: Collection[Condition], held: Mapping[Condition, Rows]) -> None:
    """Each predicted (perturbation, cell type) must be observed; the error names some, and the nearest label."""
    pairs = {one.pair for one in held}
    missing = sorted({Condition(*one.pair) for one in predicted if one.pair not in pairs})
    if not missing:
        return
    named = ", ".join(repr(str(condition)) for condition in missing[:5])
    named += f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    advice = nearest(str(missing[0]), dict.fromkeys(str(Condition(*pair)) for pair in sorted(pairs)))
    raise ValueError(
        f"the observed file has no cells of {named}; {advice}; correct the label or leave the condition out."
    )


def _refuse_unobserved(one: Condition, everything: Mapping[Condition, Rows]) -> None:
    """The error of predictions of which none is observed in its assay batch, or none outside the training cells."""
    if one in everything:
        raise ValueError(
            f"all observed cells of the predicted conditions, such as {str(one)!r}, trained, so nothing is left to "
            "judge by; give cells that were held out, or judge by the training cells with --with-training-cells."
        )
    elsewhere = [other.assay_batch for other in everything if other.pair == one.pair]
    raise ValueError(
        f"the observed file has no cells of {str(one)!r}, but of the same in {len(elsewhere)} other assay batches, "
        f"such as {elsewhere[0]!r}; correct the label, or judge over all batches together with --pool-batches."
    )


def _left_out(
    rows: Mapping[str, Mapping[Condition, Rows]],
    truth: Mapping[Condition, Rows],
    common: Collection[Condition],
    few: Collection[Condition],
) -> list[str]:
    """Sentences on the predicted conditions that are not judged, and on the observed ones that nobody predicts."""
    predicted = set.union(*(set(groups) for groups in rows.values()))
    unobserved = sorted((one for one in common if one not in truth), key=lambda one: one.place)
    reasons = {
        "not chosen, or not in every file": len(predicted) - len(set(common) & predicted),
        f"not among the observed cells, such as {str(unobserved[0])!r}" if unobserved else "": len(unobserved),
        f"fewer than {FEWEST} cells on a side, such as {str(min(few))!r}" if few else "": len(few),
    }
    notes = [
        f"{count} of {len(predicted)} predicted conditions {'is' if count == 1 else 'are'} not judged: {reason}."
        for reason, count in reasons.items()
        if count
    ]
    left = len(set(truth) - set(common))
    if left:
        notes.append(f"{left} of {len(truth)} observed conditions are not judged: not chosen, or not predicted.")
    return notes


def _shared_genes(predicted: Mapping[str, File], observed: File) -> tuple[list[str], list[str]]:
    """The genes of all files in the observed file's order, and a sentence where a file has others."""
    shared = pd.Index(observed.genes)
    for name, cells in predicted.items():
        shared = shared[shared.isin(cells.genes)]
        if shared.empty:
            raise ValueError(
                f"{name!r} and the observed file share no gene name (such as {cells.genes[0]!r} and "
                f"{observed.genes[0]!r}); give both the same kind of names."
            )
    sizes = {name: len(cells.genes) for name, cells in (*predicted.items(), ("observed", observed))}
    if all(size == len(shared) for size in sizes.values()):
        return list(shared), []
    counts = ", ".join(f"{size} in {name!r}" for name, size in sizes.items())
    return list(shared), [f"{len(shared)} genes are shared and judged ({counts})."]


def _controls(files: Mapping[str, File], observed: File, *, predicted: bool) -> tuple[File, list[str]]:
    """The file that the control cells come from, and a sentence where it is not the observed one."""
    if not predicted:
        if has_controls(observed):
            return observed, []
        given = next((name for name, cells in files.items() if has_controls(cells)), None)
        remedy = (
            "add them or name its control label"
            if given is None
            else f"add them, name its control label, or take those of {given!r} with --predicted-controls"
        )
        raise ValueError(f"the observed file holds no control cells, and changes are measured from them; {remedy}.")
    for name, cells in files.items():
        if has_controls(cells):
            return cells, [f"control cells are those of {name!r}, as asked; the observed file's are not used."]
    raise ValueError(
        "no predicted file holds control cells, which were asked for in place of the observed ones; leave "
        "--predicted-controls out."
    )


def _check_control_cells(controls: File, chosen: Iterable[Condition]) -> None:
    rows, _ = control_rows(controls, list(dict.fromkeys(condition.context for condition in chosen)))
    for context, own in rows.items():
        if own.size < FEWEST:
            has = "one control cell" if own.size else "no control cells"
            raise ValueError(
                f"cell type {context.cell_type!r} has {has}, and changes are measured from its own, two at least; "
                "add others or leave its conditions out."
            )
