"""What does each component of HOPE bring (table 6 of "Nested Learning"), in a byte language model on real text?

HOPE without one component each, equal parameters within 1 percent, five seeds paired; the paper's claim is the sign of
each difference. The equations have no momentum (table 6 has), and in them q is static (table 6 removes an adaptive q):
here these two are added instead of removed, and their row says "with".

Two blocks of width 64, 2 heads, memory chunks of 16 bytes, a continuum of 3 levels of which two learn while reading
(every 32 and 64 bytes, exact gradient, initial states learned through the updates). The Python standard library's
sources, divided by file, sequences of 128 bytes, batch 8, AdamW 3e-3 with linear decay. Bits per byte on 256 sequences
of files that were not trained on.

Expected, written before it was run: without DGD, without decay and without an adaptive k or v within 0.03 bits of the
full model, in either direction; without the continuum's reading worse by 0.02 to 0.2 bits.

Budget: two hours of one core, resumed cell by cell from reports/ablation.json. Figure: reports/ablation.png.
Run: .venv/bin/python experiments/ablation.py [WORKERS]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from cells import compute

from nested.report.drawing import INK, MUTED, blank, colour, drawn
from nested.report.inline import save_png

OUT = Path("reports/ablation.json")
STEPS, BATCH, LENGTH, JUDGED, RATE, WARMUP = 300, 8, 128, 256, 3e-3, 30
SEEDS = range(5)
HIDDEN = 256  # of the one MLP whose parameters the levels of a block share
MEMORY: dict[str, Any] = {
    "_target_": "nested.memory.self_modifying.SelfModifyingTitans", "chunk": 16, "projection_chunk": 16,
    "adaptive": ["k", "v", "eta", "alpha"],
}  # fmt: skip
READING = {"fast": ("*.continuum.0.*", 32), "mid": ("*.continuum.1.*", 64)}
ETA = 0.1
ARMS: dict[str, dict[str, Any]] = {
    "HOPE": {},
    "without DGD (gradient descent)": {"rule": "gd"},
    "without weight decay (alpha 1)": {"alpha": "one"},
    "without the continuum's levels": {},
    "without an adaptive k": {"adaptive": ["v", "eta", "alpha"]},
    "without an adaptive v": {"adaptive": ["k", "eta", "alpha"]},
    "with an adaptive q": {"adaptive": ["q", "k", "v", "eta", "alpha"]},
    "with momentum": {"momentum": True},
}
FLAT = "without the continuum's levels"
PERPLEXITY = {
    "without DGD (gradient descent)": (13.41, 12.24),
    "without weight decay (alpha 1)": (13.71, 12.24),
    "without the continuum's levels": (13.04, 12.24),
    "without an adaptive k": (13.77, 12.24),
    "without an adaptive v": (13.90, 12.24),
    "with an adaptive q": (12.24, 12.19),
    "with momentum": (12.24, 13.58),
}  # table 6: of this arm, and of the model that lacks the change


def model(arm: str) -> Any:
    """The arm's model, with MLPs of the width that gives it the full model's number of parameters."""
    import torch

    with torch.device("meta"):
        wanted = parameters(made("HOPE", HIDDEN))
        hidden = min(range(HIDDEN - 60, HIDDEN + 60), key=lambda h: abs(parameters(made(arm, h)) - wanted))
    return made(arm, hidden)


def parameters(net: Any) -> int:
    return sum(p.numel() for p in net.parameters())


def made(arm: str, hidden: int) -> Any:
    from nested.levels import Level
    from nested.signature import build

    levels = () if arm == FLAT else tuple(
        Level(name, (glob,), every, "token", gather="mean", eta=ETA) for name, (glob, every) in READING.items()
    )  # fmt: skip
    section = {"_target_": "nested.models.hope.Hope", "memory": {**MEMORY, **ARMS[arm]}, "width": 64, "depth": 2}
    section |= {"heads": 2, "hidden": hidden, "n_levels": 1 if arm == FLAT else 3, "inner_loss": "task"}
    context = {"sample_shape": (LENGTH,), "n_outputs": 256, "vocabulary": 256, "per_position": True}
    return build(section if levels else section | {"inner_loss": "next_token"}, "model", token_levels=levels, **context)


def one(cell: tuple[str, int]) -> dict[str, Any]:
    """Train and judge one arm with one seed; equal seeds read equal sequences."""
    import torch
    import torch.nn.functional as F

    from nested.sequences.text import manifest, parts, standard_library, windows

    arm, seed = cell
    torch.set_num_threads(1)
    begun, files = time.perf_counter(), standard_library()
    train, judged = parts([f for found in files.values() for f in found])
    torch.manual_seed(seed)
    net = model(arm)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.01)
    draw = torch.Generator().manual_seed(seed)

    def loss(tokens: Any) -> Any:
        return F.cross_entropy(net(tokens[:, :-1]).mT, tokens[:, 1:])

    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * (1 - step / STEPS)
        value = loss(windows(train, LENGTH + 1, BATCH, draw))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        tokens = windows(judged, LENGTH + 1, JUDGED, torch.Generator().manual_seed(0))
        bits = [loss(batch).item() / np.log(2) for batch in tokens.split(32)]
    return {
        "arm": arm, "seed": seed, "bits": float(np.mean(bits)), "parameters": parameters(net),
        "text": manifest(files), "seconds": time.perf_counter() - begun,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> None:
    """Bits per byte, and the paired difference to the full model with its 95 percent interval."""
    from nested.metrics import interval

    for arm in ARMS:
        mine, differences = [r["bits"] for r in rows if r["arm"] == arm], paired(rows, arm)
        mean, half = interval(differences)
        if mine and mean is not None:
            print(f"{arm:34} {np.mean(mine):.4f}  {mean:+.4f} +- {np.nan if half is None else half:.4f}")


def paired(rows: list[dict[str, Any]], arm: str) -> list[float]:
    """Bits per byte of an arm minus those of the full model, seed by seed."""
    full = {r["seed"]: r["bits"] for r in rows if r["arm"] == "HOPE"}
    return [r["bits"] - full[r["seed"]] for r in rows if r["arm"] == arm and r["seed"] in full]


@drawn
def figure(rows: list[dict[str, Any]]) -> Any:
    """Paired differences to the full model, a row for each arm: its seeds faint, and what the paper found beside it."""
    from nested.metrics import interval

    shown, axes = blank(8.6, 0.4 * len(PERPLEXITY) + 1.4)
    axes.axvline(0, color=INK, linewidth=0.8)
    at_the_side = {"xycoords": ("axes fraction", "data"), "va": "center", "color": MUTED}
    for row, (arm, (its, others)) in enumerate(PERPLEXITY.items()):
        differences = paired(rows, arm)
        mean, half = interval(differences)
        if mean is not None:
            undecided = half is None or abs(mean) <= half
            shade = MUTED if undecided else colour(0 if (mean > 0) == (its > others) else 1)
            axes.plot(differences, [row] * len(differences), "o", color=shade, markersize=4, alpha=0.35)
            axes.errorbar(mean, row, xerr=half, fmt="D", color=shade, capsize=3)
        axes.annotate(f"{'worse' if its > others else 'better'} ({its - others:+.2f})", (1.02, row), **at_the_side)
    axes.annotate("the paper's perplexity", (1.02, -0.7), **at_the_side | {"color": INK})
    axes.set_yticks(range(len(PERPLEXITY)), list(PERPLEXITY))
    axes.set_ylim(len(PERPLEXITY) - 0.5, -0.5)
    axes.set_xlabel("bits per byte minus those of HOPE, 95 percent intervals (right is worse)")
    words = zip(("the paper's sign", "the opposite sign", "zero inside the interval"), (colour(0), colour(1), MUTED))
    handles = [axes.plot([], [], "D", color=shade, label=label)[0] for label, shade in words]
    shown.legend(handles=handles, loc="outside lower center", ncols=3)
    return shown


def main(workers: int) -> None:
    cells = [(arm, seed) for seed in SEEDS for arm in ARMS]
    rows = compute(OUT, cells, one, ("arm", "seed"), spoken, workers)
    table(rows)
    save_png(figure(rows), OUT.with_suffix(".png"))


def spoken(row: dict[str, Any]) -> str:
    return f"{row['arm']:34} seed {row['seed']}: {row['bits']:.4f} bits per byte, {row['seconds']:.0f} s"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
