"""Loss of plasticity: 800 permutations of the digits, each seen once; is the last one learned as well as the first?

Three learners of equal size and equal steps: every layer at every step; the first layer every 8 steps (slow), the rest
at every step; and the control for it, the first layer at every step at an eighth of the rate. Budget: 25 minutes of
one core.
Run: .venv/bin/python experiments/plasticity.py [TASKS]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

TASKS = 800
WINDOW = 50  # tasks averaged at the beginning and at the end
SLOW = "levels={fast: {params: rest, period_steps: 1}, slow: {params: [layers.0.*], period_steps: %d, lr_scale: %g}}"
ARMS = {
    "one level": [],
    "first layer every 8 steps": [SLOW % (8, 1.0)],
    "control: first layer at every step, rate / 8": [SLOW % (1, 0.125)],
}
COMMON = [
    "stream=permuted_digits", "trainer=online", "model=mlp", "model.hidden=[100,100]", "optim=sgd", "optim.lr=0.02",
    "evaluate.parts=[test]", "tracking=off", "trainer.progress=false", "trainer.threads=1",
]  # fmt: skip


def one(name: str, overrides: list[str], tasks: int) -> dict[str, Any]:
    from nested.config import compose
    from nested.run import run

    begun = time.perf_counter()
    result = run(compose([*COMMON, f"stream.n_experiences={tasks}", f"label={json.dumps(name)}", *overrides]))
    learned = np.diag(result.matrix)
    return {
        "arm": name, "tasks": tasks, "seconds": time.perf_counter() - begun, "status": result.status,
        "peak_rss_bytes": result.runs[0]["cost"]["peak_rss_bytes"], "first": float(learned[:WINDOW].mean()),
        "last": float(learned[-WINDOW:].mean()), "acc": result.mean["acc"], "learned": learned.round(4).tolist(),
    }  # fmt: skip


def figure(rows: list[dict[str, Any]], out: Path) -> None:
    """Accuracy on each task right after it was learned, averaged over 20 tasks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    for row in rows:
        smooth = np.convolve(row["learned"], np.ones(20) / 20, mode="valid")
        axes.plot(np.arange(len(smooth)) + 10, smooth, label=row["arm"])
    axes.set(xlabel="task number", ylabel="accuracy on the task just learned", title="Permuted digits, one pass each")
    axes.set_ylim(0, 1)
    axes.legend()
    axes.grid(alpha=0.3)
    drawing.savefig(out, dpi=150)


def main(tasks: int) -> None:
    rows = []
    for name, overrides in ARMS.items():
        rows.append(one(name, overrides, tasks))
        r = rows[-1]
        print(
            f"{name:46} first {WINDOW}: {r['first']:.3f}, last {WINDOW}: {r['last']:.3f}, "
            f"{r['seconds']:.0f} s, peak {r['peak_rss_bytes'] / 1e6:.0f} MB",
            flush=True,
        )
        Path("reports/plasticity.json").write_text(json.dumps(rows) + "\n")
    figure(rows, Path("reports/plasticity.png"))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else TASKS)
