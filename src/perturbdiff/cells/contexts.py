r"""What is expected of a perturbation in a context, by what it did in the contexts that training has seen.

A context c is a cell type (in an assay batch), known by the mean x of its control cells; a condition k = (perturbation,
context) has n_k cells, whose mean change S_k carries sampling noise of variance V_k, gene by gene. With r_k the
correlation of the control means of c and of k's context,

    E(tau, c) = sum_k w_k S_k,   w_k ~ n_k / (n_k + 30) exp(-(max r - r_k) / h)    over the conditions k of tau
                                 (those of one cell type are one to another type, by their cells)
    s(tau, c) = b(E) E + b(S_o - E) (S_o - E)        where training has seen o = (tau, c)
    s(tau, c) = lambda b(E) E                        where it has not
    b_g(d) = 1 - V_g / d_g^2                         where d_g^2 > 3 log(G) V_g: gene g stands out
    b_g(d) = max(0, 1 - sum V / sum d^2)             where it does not, the sums over those genes

What may be sampling noise is not expected: b is the positive part of James and Stein's estimator, of all G genes but
those that noise does not explain. A knock-out changes its own gene by far the most, and nothing follows from that for
others. Of S_o - E a gene that does not stand out is expected T / (T + sum V) at most.

The bandwidth h and the share lambda of a response that proves to carry over are those that predict the trained
conditions best, each by the others of its perturbation (`Changes.fitted`): by those of all contexts where tau was seen
in another context of the cell type of c, and else by those of other cell types. h may be infinite, so that similarity
is worth nothing. T is the mean over trained conditions of |S_o - E|^2 - sum V(S_o - E), by which contexts differ at
all: where they don't, what is noise in one of them is not taken for its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perturbdiff.cells.moments import trusted

type Vector = NDArray[np.float64]
type Places = NDArray[np.int64]
type Context = tuple[str, str]
"""Cell type and assay batch; "" where contexts of several are one."""

ENOUGH = 30.0
"""Of so many cells a condition counts half of what it would with all the cells in the world."""

BANDWIDTHS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, np.inf)

MOST_CONDITIONS = 1 << 14
"""So many conditions at most are told apart; where there are more, contexts are joined."""


_ARRAYS = ("label", "context", "sizes", "changes", "noise", "means", "halves")


class Carried(NamedTuple):
    """How a response carries over: the bandwidth h of similarity, and the share lambda of it that does."""

    bandwidth: float = np.inf
    share: float = 1.0


CARRIED = Carried()


@dataclass(frozen=True, eq=False)
class Changes:
    """The mean changes of trained conditions, log1p counts per 10^4.

    Attributes:
        label: the number of each condition's perturbation [conditions], ascending.
        context: the place of its context [conditions].
        sizes: its cells [conditions].
        changes: S [conditions, genes].
        noise: V [conditions, genes].
        contexts: the names of the contexts.
        means: of their control cells [contexts, genes].
        within: what carries over from other contexts of the same cell type.
        across: what carries over from other cell types.
        apart: T, how far the changes of one perturbation are apart in two contexts, squared.
        halves: half of what the changes of two halves of the cells, control cells too, differ by [conditions, genes]:
            noise as S has it, in which genes go together as they do there. None where it is not known.
    """

    label: Places
    context: Places
    sizes: Vector
    changes: NDArray[np.float32]
    noise: NDArray[np.float32]
    contexts: tuple[Context, ...]
    means: NDArray[np.float32]
    within: Carried = CARRIED
    across: Carried = CARRIED
    apart: float = np.inf
    halves: NDArray[np.float32] | None = None

    @property
    def n_genes(self) -> int:
        """Genes of the panel."""
        return int(self.changes.shape[1])

    @cached_property
    def place(self) -> dict[Context, int]:
        """The number of each context."""
        return {name: i for i, name in enumerate(self.contexts)}

    @classmethod
    def of_labels(cls, changes: NDArray[np.float32]) -> "Changes":
        """One change for each label, whatever the context [labels, genes], the null's first."""
        n = len(changes)
        everywhere: tuple[Context, ...] = (("", ""),)
        means = np.zeros((1, changes.shape[1]), dtype=np.float32)
        where = np.zeros(n, dtype=np.int64)
        return cls(np.arange(n), where, np.ones(n), changes, np.zeros_like(changes), everywhere, means)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `of_arrays` needs beside the facts."""
        return {name: array for name in _ARRAYS if (array := getattr(self, name)) is not None}

    def facts(self) -> dict[str, Any]:
        """What `of_arrays` needs beside the arrays, as JSON has it: no bandwidth is an infinite one."""
        carried = {name: list(getattr(self, name)) for name in ("within", "across")}
        finite = {name: [h if np.isfinite(h) else None, share] for name, (h, share) in carried.items()}
        return {"names": self.contexts, **finite, "apart": self.apart if np.isfinite(self.apart) else None}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> "Changes":
        """Put together again."""
        names = tuple((str(cell_type), str(batch)) for cell_type, batch in facts["names"])
        own: dict[str, Any] = {name: arrays[name] for name in _ARRAYS if name in arrays}
        for name in ("within", "across"):
            bandwidth, share = facts[name]
            own[name] = Carried(np.inf if bandwidth is None else float(bandwidth), float(share))
        if own["noise"].ndim == 1:  # summed over genes, before format 6
            own["noise"] = np.broadcast_to(own["noise"][:, None] / own["changes"].shape[1], own["changes"].shape)
        own["apart"] = np.inf if facts["apart"] is None else float(facts["apart"])
        return cls(**own, contexts=names)

    def pooled(self, n_labels: int) -> NDArray[np.float32]:
        """The mean change of each label over contexts, by their cells [labels + 1, genes]; 0 where there is none."""
        known = np.arange(n_labels + 1)[:, None] == self.label
        weights = known * self.sizes
        found: NDArray[np.float64] = weights @ self.changes / np.maximum(weights.sum(axis=1, keepdims=True), 1)
        return found.astype(np.float32)

    def of_label(self, label: int) -> Places:
        """The conditions of a perturbation."""
        first, last = np.searchsorted(self.label, [label, label + 1])
        return np.arange(first, last)

    def similarity(self, control: NDArray[Any]) -> Vector:
        """The correlation of a control mean [genes] with each context's [contexts]; 0 where one is constant."""
        centred = control.astype(np.float64) - control.mean(dtype=np.float64)
        norm = float(np.sqrt(np.square(centred).sum()))
        unit = centred / norm if norm > 0 else centred
        found: Vector = self._standardised @ unit
        return found

    def expected(
        self, label: int, similarity: Vector, own: int | None = None, *, cell_type: str = "", left_out: bool = False
    ) -> Vector:
        """The change [genes] of a perturbation in a context; 0 for a label of which training has no condition.

        Args:
            label: its number.
            similarity: of the context, see `similarity`.
            own: the place of the context, where training has seen it.
            cell_type: of the context, where training has not seen it.
            left_out: expect what would be expected if training had not seen the perturbation in this cell type, or in
                this context where it was seen in no other type.
        """
        rows = self.of_label(label)
        mine = self.context[rows] == (-1 if own is None else own)
        named = cell_type if own is None else self.contexts[own][0]
        alike = self._cell_type[self.context[rows]] == self._number.get(named, -1)
        if left_out:
            kept = ~(mine if alike.all() else alike)
            if kept.any():
                rows, mine, alike = rows[kept], mine[kept], alike[kept]
        if not len(rows):
            return np.zeros(self.n_genes)
        across = not (alike & ~mine).any()
        carried = self.across if across else self.within
        w = self._weights(rows, similarity[self.context[rows]], carried.bandwidth, across=across)
        mean, noise = self._mean(rows, w)
        found = mean * trusted(mean, noise)
        if not mine.any():
            return np.asarray(found * carried.share)
        beyond, noise = self._mean(rows, mine - w)
        most = self.apart / (self.apart + noise.sum()) if 0 < self.apart < np.inf else float(self.apart > 0)
        return np.asarray(found + beyond * trusted(beyond, noise, most))

    def by_others(self, rows: Places, *, across: bool) -> tuple[Places, Vector]:
        """Conditions of one perturbation that the others can predict, and what is expected of them [.., genes].

        The others are those of other cell types, or all, of which one at least is of the same type.
        """
        judged, r = self._others(rows, across=across)
        carried = self.across if across else self.within
        return rows[judged], self._by_similar(rows, r, carried.bandwidth, across=across) * carried.share

    def _mean(self, rows: Places, w: Vector) -> tuple[Vector, Vector]:
        """The sum of some conditions' changes with weights [.., conditions], and its noise [.., genes]."""
        return w @ self.changes[rows].astype(np.float64), np.square(w) @ self.noise[rows].astype(np.float64)

    def fitted(self) -> "Changes":
        """With what predicts each condition best from the others of its perturbation, in either way.

        Errors are squares, summed over genes, of a condition in proportion to n / (n + 30). Where no perturbation was
        seen in two contexts (of a type, of two types), there is nothing to fit.
        """
        several = self._several
        if not several:
            return self
        within, across = self._fitted(several, across=False), self._fitted(several, across=True)
        beyond = np.concatenate([self._beyond(rows, within, across) for rows in several])
        weight = np.concatenate([self._counting(rows) for rows in several])
        return replace(self, within=within, across=across, apart=max(0.0, float(np.average(beyond, weights=weight))))

    def _beyond(self, rows: Places, within: Carried, across: Carried) -> Vector:
        """The squared distance of each condition from the mean of all of its perturbation, less its noise."""
        context = self._standardised[self.context[rows]]
        r, kind = context @ context.T, self._cell_type[self.context[rows]]
        found = []
        for i, similar in enumerate(r):
            alone = (kind == kind[i]).sum() == 1
            w = self._weights(rows, similar, (across if alone else within).bandwidth, across=alone)
            beyond, noise = self._mean(rows, np.eye(len(rows))[i] - w)
            found.append(beyond @ beyond - noise.sum())
        return np.array(found)

    def _fitted(self, several: Sequence[Places], *, across: bool) -> Carried:
        before, after, squares = np.sum([self._left_out(rows, across=across) for rows in several], axis=0)
        squares = np.maximum(squares, np.finfo(np.float32).tiny)  # of exact ones, 0
        best = int(np.argmin(np.round(squares / squares.min(), 9)[::-1]))  # of equal ones the widest
        best = len(BANDWIDTHS) - 1 - best
        share = float(np.clip(before[best] / after[best], 0.0, 1.0)) if after[best] > 0 else 1.0
        return Carried(BANDWIDTHS[best], share)

    @property
    def _several(self) -> list[Places]:
        """The conditions of each perturbation that was seen in several contexts."""
        first = np.flatnonzero(np.diff(self.label, prepend=-1))
        rows = np.split(np.arange(len(self.label)), first[1:])
        return [own for own in rows if len(own) > 1]

    def _left_out(self, rows: Places, *, across: bool) -> NDArray[np.float64]:
        """<S, s>, |s|^2 and |S - s|^2 of conditions, each predicted by others, summed over them [3, bandwidths]."""
        judged, r = self._others(rows, across=across)
        found = np.zeros((3, len(BANDWIDTHS)))
        if not judged.any():
            return found
        own, weight = self.changes[rows[judged]].astype(np.float64), self._counting(rows)[judged]
        for i, bandwidth in enumerate(BANDWIDTHS):
            mean = self._by_similar(rows, r, bandwidth, across=across)
            of_each = (own * mean).sum(axis=1), np.square(mean).sum(axis=1), np.square(own - mean).sum(axis=1)
            found[:, i] = [weight @ sums for sums in of_each]
        return found

    def _others(self, rows: Places, *, across: bool) -> tuple[NDArray[np.bool_], Vector]:
        """Which conditions others can predict, and how similar those are to them [.., conditions]."""
        context = self._standardised[self.context[rows]]
        r, cell_type = context @ context.T, self._cell_type[self.context[rows]]
        alike = cell_type[:, None] == cell_type
        np.fill_diagonal(r, -np.inf)
        if across:
            r[alike] = -np.inf
        judged = np.isfinite(r).any(axis=1) if across else alike.sum(axis=1) > 1
        return judged, r[judged]

    def _by_similar(self, rows: Places, r: Vector, bandwidth: float, *, across: bool) -> Vector:
        """The shrunk mean of conditions by their similarities [.., conditions]: [.., genes]."""
        if not len(r):
            return np.zeros((0, self.n_genes))
        w = np.stack([self._weights(rows, similar, bandwidth, across=across) for similar in r])
        mean, noise = self._mean(rows, w)
        found: Vector = mean * trusted(mean, noise)
        return found

    @cached_property
    def _number(self) -> dict[str, int]:
        return {cell_type: i for i, cell_type in enumerate(dict.fromkeys(name for name, _ in self.contexts))}

    @cached_property
    def _cell_type(self) -> Places:
        """The number of each context's cell type [contexts]."""
        return np.array([self._number[cell_type] for cell_type, _ in self.contexts], dtype=np.int64)

    def _counting(self, rows: Places) -> Vector:
        return self.sizes[rows] / (self.sizes[rows] + ENOUGH)

    def _weights(self, rows: Places, similarity: Vector, bandwidth: float, *, across: bool) -> Vector:
        """The weights of some conditions; a similarity of -inf leaves one out. Across types those of a type are one."""
        there = np.isfinite(similarity)
        n, r = self.sizes[rows] * there, np.where(there, similarity, 0.0)
        if across:
            kind = np.unique(self._cell_type[self.context[rows]], return_inverse=True)[1]
            size = np.bincount(kind, n)
            share, r = n / np.maximum(size, 1.0)[kind], np.bincount(kind, n * r) / np.maximum(size, 1.0)
        else:
            kind, size, share = np.arange(len(rows)), n, there.astype(np.float64)
        apart = np.where(size > 0, r[size > 0].max() - r, np.inf)
        near = np.exp(-apart / bandwidth) if np.isfinite(bandwidth) else np.ones(len(r))
        w = share * (size / (size + ENOUGH) * near)[kind]
        found: Vector = w / w.sum()
        return found

    @cached_property
    def _standardised(self) -> NDArray[np.float64]:
        """The control means of contexts, centred and of norm 1 [contexts, genes]."""
        centred = self.means.astype(np.float64)
        centred -= centred.mean(axis=1, keepdims=True)
        norm = np.sqrt(np.square(centred).sum(axis=1, keepdims=True))
        found: NDArray[np.float64] = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
        return found


def joined(groups: Sequence[tuple[int, str, str]]) -> list[Context]:
    """The context of each group (perturbation, cell type, assay batch), the finest that leave few enough conditions."""
    ways = (
        [(cell_type, batch) for _, cell_type, batch in groups],
        [(cell_type, "") for _, cell_type, _ in groups],
        [("", "") for _ in groups],
    )
    for contexts in ways:
        if len({(label, context) for (label, _, _), context in zip(groups, contexts, strict=True)}) <= MOST_CONDITIONS:
            return contexts
    return ways[-1]
