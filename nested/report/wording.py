"""Numbers and words as people read them; None is an en dash everywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from nested.report.records import Run, mean_of, visible

NONE = "–"
IN_EACH = "in each sequence"  # updates of a level on the token clock
HEADINGS = {
    "learning_acc": "learning accuracy",
    "acc": "ACC",
    "forgetting": "forgetting",
    "bwt": "BWT",
    "fwt": "FWT",
    "gain": "gain",
    "min_acc": "min-ACC",
    "wc_acc": "WC-ACC",
    "positions": "positions right",
    "frozen": "frozen accuracy",
}


def heading(metric: str, measure: str | None) -> str:
    """The name of a metric for scores of one measure (accuracy, loss, bits per byte), or (None) of several."""
    if measure == "accuracy":
        return HEADINGS[metric]
    word = measure or "score"
    return "final " + word if metric == "acc" else HEADINGS[metric].replace("accuracy", word).replace("ACC", word)


def score(value: float | None, lower: bool = False) -> str:
    """Three decimals for accuracies, four figures for losses."""
    return NONE if value is None else f"{value:.4g}" if lower else f"{value:.3f}"


def plus_minus(mean: float | None, half: float | None, lower: bool = False) -> str:
    """`0.912 ± 0.013`, or the mean alone where there is no interval."""
    if mean is None or half is None:
        return score(mean, lower)
    decimals = max(0, 1 - math.floor(math.log10(half))) if lower and half > 0 else 3  # two figures of a loss's interval
    return f"{mean:.{decimals}f} ± {half:.{decimals}f}"


def metric(run: Run, name: str) -> str:
    """A metric of a run with its interval."""
    return plus_minus(run.mean.get(name), run.ci95.get(name), run.lower_is_better)


def count(value: float | None) -> str:
    """`12,800`."""
    return NONE if value is None else f"{value:,.0f}"


def short(value: float) -> str:
    """Four figures; what rounding has left of a zero is one."""
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"


def every(period: float | None, unit: str) -> str:
    """How often a level learns: `step`, `8 steps`, `4 tokens`."""
    return NONE if period is None else unit if period == 1 else f"{period:,.0f} {unit}s"


def seconds(value: float | None, half: float | None = None) -> str:
    """`12.3 ± 0.4`, whole from a hundred on."""
    if value is None:
        return NONE
    digits = 0 if value >= 100 else 1
    return f"{value:,.{digits}f}" + ("" if half is None else f" ± {half:,.{digits}f}")


def large(value: float | None) -> str:
    """`3.2 G`."""
    if value is None:
        return NONE
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def memory(value: float | None) -> str:
    """`512 MiB`."""
    if value is None:
        return NONE
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def steps(run: Run) -> float | None:
    """Optimizer steps of a seed, the mean where seeds differ."""
    return mean_of(run.cost("steps"))


def run_seconds(run: Run) -> tuple[float | None, float | None]:
    """Mean seconds of a seed, and the half width."""
    known = [s.seconds for s in run.seeds if s.seconds is not None]
    return (run.mean["seconds"], run.ci95.get("seconds")) if run.mean.get("seconds") else (mean_of(known), None)


def seeds(run: Run) -> str:
    """`3`, or `2 of 3` where some are not done."""
    return str(run.planned) if len(run.done) == run.planned else f"{len(run.done)} of {run.planned}"


def slug(text: str) -> str:
    """A label as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "run"


def listed(labels: Sequence[str]) -> str:
    """`a, b and c`."""
    quoted = [f"“{visible(label)}”" for label in labels]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
