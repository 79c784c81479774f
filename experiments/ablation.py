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

Budget: two hours of one core, resumed cell by cell from reports/ablation.json.
Run: .venv/bin/python experiments/ablation.py [WORKERS]
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

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

    full = {r["seed"]: r["bits"] for r in rows if r["arm"] == "HOPE"}
    for arm in ARMS:
        mine = {r["seed"]: r["bits"] for r in rows if r["arm"] == arm}
        mean, half = interval([mine[s] - full[s] for s in mine if s in full])
        if mine and mean is not None:
            print(f"{arm:34} {np.mean(list(mine.values())):.4f}  {mean:+.4f} +- {half or float('nan'):.4f}")


def main(workers: int) -> None:
    rows = json.loads(OUT.read_text()) if OUT.exists() else []
    done = {(r["arm"], r["seed"]) for r in rows}
    left = [(arm, seed) for seed in SEEDS for arm in ARMS if (arm, seed) not in done]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for future in as_completed([pool.submit(one, cell) for cell in left]):
            rows.append(future.result())
            OUT.write_text(json.dumps(rows, indent=1) + "\n")
            r = rows[-1]
            print(f"{r['arm']:34} seed {r['seed']}: {r['bits']:.4f} bits per byte, {r['seconds']:.0f} s", flush=True)
    table(rows)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
