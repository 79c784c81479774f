"""The main job in minutes: split digits, what is forgotten, and whether slow levels are what helps.

Two scenarios, three seeds, two models of equal size, with and without replay, the upper bound, and two controls for the
model with levels: one level at equal updates, and every level at every step with the same drift. Every arm has the same
number of steps and its rate was chosen from four, on validation data of other seeds (`--tune` does it again); the last
control takes the rate of what it controls for.

Run: make demo                 Tune again: .venv/bin/python experiments/demo.py --tune
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nested.result import Result

SEEDS = [0, 1, 2]
TUNING_SEEDS = [100, 101]
GRID = {"adamw": [3e-4, 1e-3, 2e-3, 4e-3], "delta_momentum": [0.01, 0.02, 0.04, 0.08]}
RATES = Path(__file__).with_name("demo_rates.json")
SCENARIOS = ("class", "domain")
JOINT_FLOOR = 0.95  # accuracy that the upper bound must reach class-incrementally, else something is broken

SIZE = ["model.patch=4"]  # four tokens of 4 x 4 pixels: faster and, jointly trained, better than 16 of 2 x 2
BUDGET = [
    "stream=split_digits",
    "trainer.batch_size=16",
    "trainer.epochs=10",
    "trainer.threads=1",
]
TRANSFORMER = ["model=transformer", "optim=adamw", *SIZE]
JOINT = ["method=joint", "trainer.joint_epochs=40", "trainer.batch_size=32"]  # 1,640 steps
HOPE = ["model=hope_attention", "optim=delta_momentum", *SIZE]


@dataclass(frozen=True)
class Arm:
    """One line of the table: what is trained, and what differs from the others."""

    label: str
    overrides: list[str]
    rate_of: str | None = None  # the arm whose rate it takes, where a rate of its own would undo what it controls for

    @property
    def optim(self) -> str:
        return next(o.removeprefix("optim=") for o in self.overrides if o.startswith("optim="))


def equal_updates_period() -> int:
    """The period at which one level makes as many parameter updates as the three: nearest to P / sum_l (P_l / p_l)."""
    from nested.config import compose
    from nested.cost import levels_table
    from nested.run import prepare

    table = levels_table(prepare(compose([*HOPE, "levels=continuum"]), 0))
    total = sum(level["parameters"] for level in table)
    return max(1, round(total / sum(level["parameters"] / level["period"] for level in table)))


def arms() -> list[Arm]:
    single = ["levels=single", f"levels.all.period_steps={equal_updates_period()}"]
    return [
        Arm("transformer, joint (upper bound)", [*TRANSFORMER, *JOINT]),
        Arm("transformer, naive", [*TRANSFORMER, "method=naive"]),
        Arm("hope-attention, naive", [*HOPE, "levels=continuum", "method=naive"]),
        Arm("  control: one level, equal updates", [*HOPE, *single, "method=naive"]),
        Arm(
            "  control: all periods 1, same drift",
            [*HOPE, "levels=continuum_same_drift", "method=naive"],
            rate_of="hope-attention, naive",
        ),
        Arm("transformer, replay", [*TRANSFORMER, "method=replay"]),
        Arm("hope-attention, replay", [*HOPE, "levels=continuum", "method=replay"]),
    ]


def one(arm: Arm, scenario: str, rate: float, seeds: list[int], extra: list[str]) -> Result:
    from nested.config import compose
    from nested.run import run

    given = [f"stream.scenario={scenario}", f"optim.lr={rate}", f"seeds={json.dumps(seeds)}".replace(" ", "")]
    label = json.dumps(arm.label.strip())
    return run(compose([*BUDGET, "trainer.progress=false", *arm.overrides, *given, f"label={label}", *extra]))


def tune() -> None:
    """Choose each arm's rate in each scenario on validation data; kept, with all that was tried, in demo_rates.json."""
    import tempfile

    rates: dict[str, dict[str, Any]] = {}
    for scenario in SCENARIOS:
        for arm in arms():
            if arm.rate_of:
                continue
            tried = {}
            for rate in GRID[arm.optim]:
                with tempfile.TemporaryDirectory() as folder:
                    quiet = ["tracking=off", f"runs={folder}", "evaluate.parts=[validation]"]
                    result = one(arm, scenario, rate, TUNING_SEEDS, quiet)
                if result.status == "done":
                    tried[rate] = {name: result.mean[name] for name in ("acc", "learning_acc")}
            best = choose(tried)
            rates.setdefault(scenario, {})[arm.label.strip()] = {"rate": best, "tried": tried}
            print(f"{scenario:7} {arm.label.strip():38} {best:g}   {tried}", flush=True)
    RATES.write_text(json.dumps({"seeds": TUNING_SEEDS, "chosen": rates}, indent=1) + "\n")


def choose(tried: dict[float, dict[str, Any]]) -> float:
    """The rate of the highest ACC; among those within 0.02 of it, where ACC says nothing, the one that learns best."""
    top = max(t["acc"] for t in tried.values())
    return max((r for r, t in tried.items() if t["acc"] >= top - 0.02), key=lambda r: tried[r]["learning_acc"])


def difference(a: Result, b: Result, metric: str) -> str:
    """a - b over the common seeds, paired, with its 95 percent interval."""
    from nested.metrics import interval

    mean, half = interval([x[metric] - y[metric] for x, y in zip(a.runs, b.runs, strict=True)])
    return f"{mean:+.3f} +- {half:.3f}"


def conclude(scenario: str, results: dict[str, Result]) -> list[str]:
    """What the numbers say, whatever they say."""
    hope = results["hope-attention, naive"]
    lines = [f"{scenario} scenario, hope-attention naive minus each other arm, paired over {len(SEEDS)} seeds:"]
    for other in ("transformer, naive", "control: one level, equal updates", "control: all periods 1, same drift"):
        learned, lost = (difference(hope, results[other], m) for m in ("learning_acc", "forgetting"))
        lines.append(f"  {other:36} learning accuracy {learned}, forgetting {lost}")
    return lines


def main() -> int:
    from rich.console import Console

    from nested import report

    begun = time.perf_counter()
    chosen = json.loads(RATES.read_text())["chosen"]
    runs, said, broken = [], [], []
    for scenario in SCENARIOS:
        results = {}
        for arm in arms():
            name = arm.label.strip()
            rate = chosen[scenario][arm.rate_of or name]["rate"]
            result = one(arm, scenario, rate, SEEDS, ["evaluate.parts=[test]"])
            if result.status != "done":
                print(f"{name}: {'; '.join(result.problems)}", file=sys.stderr)
                return 3
            results[name] = result
            runs.append(report.load(result.path))
            m = result.mean
            lost = "" if m["forgetting"] is None else f", forgetting {m['forgetting']:.3f}"
            print(
                f"{time.perf_counter() - begun:5.0f} s  {scenario:6} {arm.label:38} ACC {m['acc']:.3f}{lost}",
                flush=True,
            )
        bound = results["transformer, joint (upper bound)"].mean["acc"]
        if scenario == "class" and (bound is None or bound < JOINT_FLOOR):
            broken.append(f"SOMETHING IS BROKEN: joint training reaches {bound}, and {JOINT_FLOOR} is expected")
        said += conclude(scenario, results)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(report.table(runs))
    page = report.page(runs, Path("runs") / "demo" / "report.html")
    print("\n".join([*said, *broken]))
    print(
        f"\n{time.perf_counter() - begun:.0f} seconds\npage: {page.resolve()}\nall runs in MLflow: .venv/bin/nested ui"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(tune() if "--tune" in sys.argv else main())
