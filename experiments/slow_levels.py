"""Do slow levels forget less than the same levels updated at every step with the same drift?

Split digits, domain scenario, ten orders of classes, paired. Positive means that slow levels forget more.
"""

import sys

from nested.claims import Claim

CLAIM = Claim(
    name="slow_levels",
    statement="split digits, domain: slow levels change forgetting by nothing that a smaller step does not",
    command=["nested", "claims", "slow_levels"],
    budget_seconds=180,
    metric="measure",
    expected=0.0,
    tolerance=0.06,
    seeds=(10, 11, 12, 13, 14, 15, 16, 17, 18, 19),
)


def measure(seeds: list[int]) -> float:
    """Mean over seeds of forgetting with `levels=continuum` minus forgetting with `levels=continuum_same_drift`."""
    from nested.config import compose
    from nested.metrics import interval
    from nested.run import run

    given = ["recipe=digits_hope", "stream.scenario=domain", f"seeds={seeds}".replace(" ", "")]
    quiet = ["tracking=off", "trainer.progress=false", "evaluate.parts=[test]"]
    slow, drift = (run(compose([*given, *quiet, f"levels={kind}"])) for kind in ("continuum", "continuum_same_drift"))
    for name in ("learning_acc", "forgetting"):
        mean, half = interval([a[name] - b[name] for a, b in zip(slow.runs, drift.runs, strict=True)])
        means = f"slow {slow.mean[name]:.3f}, same drift {drift.mean[name]:.3f}"
        print(f"{name}: {means}, paired {mean:+.3f} +- {half:.3f}", file=sys.stderr)
    mean, _ = interval([a["forgetting"] - b["forgetting"] for a, b in zip(slow.runs, drift.runs, strict=True)])
    return mean if mean is not None else float("nan")
