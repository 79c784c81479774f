"""The accuracy matrix and what is read off it.

R[i, j] is the score on experience j after training on experience i; R0[j] before any training. n experiences.
Scores are accuracies, or mean losses where lower is better (squared error, bits per byte): there max becomes min and
every difference changes sign, so that positive BWT, FWT and gain mean improvement, positive forgetting loss, in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
METRICS = (  # of a summary; positions, frozen: acc of the matrix beside the score's own
    "acc", "forgetting", "bwt", "fwt", "learning_acc", "gain", "min_acc", "wc_acc", "positions", "frozen", "seconds",
)  # fmt: skip
POSITIONS = "/positions"  # `test/positions` is the matrix of right positions beside that of right sequences, `test`
FROZEN = "/frozen"  # `test/frozen` is that of a language model which learns nothing while it reads


def signed(matrix: Array, lower_is_better: bool) -> Array:
    """The matrix with larger meaning better."""
    return -matrix if lower_is_better else matrix


def acc(r: Array) -> float:
    """mean_j R[n-1, j]."""
    return float(r[-1].mean())


def learning_acc(r: Array) -> float:
    """mean_j R[j, j]."""
    return float(np.diag(r).mean())


def forgetting(r: Array, lower_is_better: bool = False) -> float | None:
    """mean over j < n-1 of (max over i < n-1 of R[i, j]) - R[n-1, j]; None for one experience."""
    s = signed(r, lower_is_better)
    return None if len(s) < 2 else float((s[:-1, :-1].max(0) - s[-1, :-1]).mean())


def bwt(r: Array, lower_is_better: bool = False) -> float | None:
    """Backward transfer: mean over j < n-1 of R[n-1, j] - R[j, j]; None for one experience."""
    s = signed(r, lower_is_better)
    return None if len(s) < 2 else float((s[-1, :-1] - np.diag(s)[:-1]).mean())


def fwt(r: Array, initial: Array, lower_is_better: bool = False) -> float | None:
    """Forward transfer: mean over j > 0 of R[j-1, j] - R0[j]; None if n = 1. Uninformative class-incrementally."""
    s = signed(r, lower_is_better)
    return None if len(s) < 2 else float((np.diag(s, 1) - signed(initial, lower_is_better)[1:]).mean())


def gain(r: Array, alone: Array, lower_is_better: bool = False) -> float:
    """mean_j (R[j, j] - S[j]), S[j] the score of the same configuration trained on experience j alone."""
    return float((np.diag(signed(r, lower_is_better)) - signed(alone, lower_is_better)).mean())


def anytime(experience: Sequence[int], scores: Array, lower_is_better: bool = False) -> tuple[float | None, float]:
    """(min-ACC, WC-ACC) of De Lange et al., arXiv 2205.13452, at the last evaluation.

    `experience` (m,) says what was being learned at each evaluation (-1 before training), `scores` (m, n) the scores.
    min-ACC = mean over learned experiences j of the minimum of their score at any evaluation after they were learned;
    WC-ACC = (1/k) score of the current one + (1 - 1/k) min-ACC, k experiences seen.
    """
    s = signed(scores, lower_is_better)
    at = np.asarray(experience)
    current = int(at[-1])
    least = [float(s[at > j, j].min()) for j in range(current)]
    sign = -1.0 if lower_is_better else 1.0
    now, k = float(s[-1, current]), current + 1
    low = float(np.mean(least)) if least else None
    worst = now / k + (1 - 1 / k) * (low or 0.0)
    return (None if low is None else sign * low), sign * worst


def summarise(r: Array, initial: Array, lower_is_better: bool, joint: bool = False) -> dict[str, float | None]:
    """Every metric of the matrix; a joint fit has no order, hence no forgetting and no transfer."""
    several = not joint
    return {
        "acc": acc(r),
        "forgetting": forgetting(r, lower_is_better) if several else None,
        "bwt": bwt(r, lower_is_better) if several else None,
        "fwt": fwt(r, initial, lower_is_better) if several else None,
        "learning_acc": learning_acc(r),
    }


def half_width(values: Array) -> Array | None:
    """Half the 95 percent interval of the mean over the first axis (seeds), Student t; None for fewer than two."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    return stdtrit(len(values) - 1, 0.975) * values.std(0, ddof=1) / math.sqrt(len(values))


def paired_p(differences: Array) -> float | None:
    """Two-sided p of the paired t-test; None for fewer than two differences, or where they do not vary."""
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    if spread <= 1e-12 * float(np.abs(differences).max(initial=0.0)):
        return None
    from scipy.special import stdtr

    t = float(differences.mean()) / (spread / math.sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def interval(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean over seeds and the half width of its 95 percent interval; None where it cannot be given."""
    known = np.array([v for v in values if v is not None])
    if not len(known) or len(known) < len(values):
        return None, None
    half = half_width(known)
    return float(known.mean()), None if half is None else float(half)


def paired(differences: Sequence[float] | Array) -> tuple[float, float | None, float | None]:
    """Mean of the paired differences, of which there is at least one, half width of its interval, and p."""
    found = np.asarray(differences, dtype=np.float64)
    half = half_width(found)
    return float(found.mean()), None if half is None else float(half), paired_p(found)


def over_seeds(summaries: Sequence[dict[str, Any]], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """{name: mean} and {name: half width} over the seeds' summaries."""
    pairs = {name: interval([s.get(name) for s in summaries]) for name in names}
    return {n: m for n, (m, _) in pairs.items()}, {n: c for n, (_, c) in pairs.items()}
