"""Formal languages (table 5 of "Nested Learning"): which memories recognise them at lengths they were not trained on?

What may follow each prefix is asked for, and a string counts only if every position is right. Trained on fresh strings
of lengths 2 to 50; judged on new ones of 2 to 50 (bin 0), 51 to 100 (bin 1) and about 256. One block of width 32, two
heads, MLP 64; AdamW 3e-3, 50 warm-up steps, linear decay, 1,000 steps of 64 strings, the same for every arm. Initial
memories are learned, also in linear attention and DeltaNet. The three memories compared get five seeds on parity, the
rest one.

Also measured: the smallest and largest eigenvalue that one write gives the memory along its key (alpha - c eta, with
self-generated values alpha - c eta + eta <v, k>), on bin 0. Parity at any length needs one that reaches -1.

Budget: two hours of one core, a cell at a time; what is in reports/formal_languages.json is not run again.
Run: .venv/bin/python experiments/formal_languages.py [WORKERS]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from nested.claims import Claim

CLAIM = Claim(
    name="parity",
    statement="parity: of 5 fresh seeds, those in which a DGD memory with fixed projections gets every string of "
    "lengths 2-100 right",
    command=["nested", "claims", "parity"],
    budget_seconds=400,
    metric="measure",
    expected=5,
    tolerance=1,
    seeds=(10, 11, 12, 13, 14),
)
OUT = Path("reports/formal_languages.json")
FIGURE = OUT.with_suffix(".png")
STEPS, BATCH, RATE, WARMUP = 1000, 64, 3e-3, 50
TRAIN, BINS = (2, 50), {"bin 0": (2, 50), "bin 1": (51, 100), "256": (253, 256)}
JUDGED = 500
DELTA = {"_target_": "nested.memory.delta.DeltaMemory"}
SELF = {"_target_": "nested.memory.self_modifying.SelfModifyingTitans"}
ARMS: dict[str, dict[str, Any]] = {
    "DGD memory, fixed projections": {**DELTA, "gates": "hard", "alpha": "one"},
    "HOPE (self-modifying)": {**SELF},
    "HOPE, nothing forgotten": {**SELF, "alpha": "one"},
    "HOPE, half the rate (monotone)": {**SELF, "alpha": "one", "monotone": True},
    "DGD memory, monotone": {**DELTA, "gates": "hard", "alpha": "one", "monotone": True},
    "LSTM": {"_target_": "nested.memory.lstm.LSTMMemory"},
    "transformer": {"_target_": "nested.memory.attention.AttentionMemory"},
    "linear attention": {**DELTA, "objective": "dot", "rule": "gd", "alpha": "one", "eta": "constant"},
    "DeltaNet": {**DELTA, "rule": "gd", "alpha": "one", "eta_max": 1.0},
}
CLAIMED = ("DGD memory, fixed projections", "HOPE (self-modifying)", "HOPE, nothing forgotten")
LANGUAGES = ("parity", "aa", "abab", "anbn", "anbncn", "shuffle2")
Cell = tuple[str, str, int]  # arm, language, seed


def cells() -> list[Cell]:
    first = [(arm, "parity", seed) for seed in range(5) for arm in CLAIMED]
    return [*first, *((arm, lang, 0) for lang in LANGUAGES for arm in ARMS if (arm, lang, 0) not in first)]


def model(arm: str) -> Any:
    """One block around the arm's memory."""
    from nested.sequences.formal_languages import SETS, VOCABULARY
    from nested.signature import build

    section = {"_target_": "nested.models.hope.Hope", "memory": ARMS[arm], "width": 32, "depth": 1, "heads": 2}
    section |= {"hidden": 64, "n_levels": 1}
    return build(section, "model", sample_shape=(51,), n_outputs=len(SETS), vocabulary=VOCABULARY, per_position=True)


def one(cell: Cell) -> dict[str, Any]:
    """Train and judge one cell."""
    import torch
    import torch.nn.functional as F

    from nested.sequences.formal_languages import encode, lengths, strings

    arm, language, seed = cell
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random, begun = Random(f"{language}/{seed}"), time.perf_counter()
    net = model(arm)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.01)
    loss = torch.zeros(())
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * max(0.05, 1 - step / STEPS)
        x, y = encode(language, strings(language, lengths(language, *TRAIN), BATCH, random))
        loss = F.cross_entropy(net(x).mT, y, ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    row: dict[str, Any] = {"arm": arm, "language": language, "seed": seed, "loss": loss.item()}
    row["parameters"] = sum(p.numel() for p in net.parameters())
    for name, among in BINS.items():
        texts = strings(language, lengths(language, *among), JUDGED, Random(f"judge/{language}/{seed}/{name}"))
        row[name] = judge(net, language, texts)
    row["eigenvalues"] = eigenvalues(net, language)
    row["seconds"] = time.perf_counter() - begun
    return row


def judge(net: Any, language: str, texts: list[str]) -> float:
    """Share of strings of which every position is right."""
    import torch

    from nested.sequences.exact_match import exact_match
    from nested.sequences.formal_languages import encode

    x, y = encode(language, texts)
    with torch.no_grad():
        right = [exact_match(net(a).argmax(2), b) for a, b in zip(x.split(100), y.split(100))]
    return float(torch.cat(right).double().mean())


def eigenvalues(net: Any, language: str) -> list[float] | None:
    """Smallest and largest eigenvalue of a write along its key, over the tokens of some strings; None without keys."""
    import torch

    from nested.memory.delta import DeltaMemory
    from nested.memory.objectives import erase
    from nested.memory.self_modifying import SelfModifyingTitans
    from nested.sequences.formal_languages import encode, lengths, strings

    block = net.blocks[0]
    texts = strings(language, [max(lengths(language, *TRAIN))], 50, Random(f"eigenvalues/{language}"))  # of one length
    with torch.no_grad():
        seen, _ = block.convolution(block.norm(net.entry(encode(language, texts)[0])))
        if isinstance(block.memory, DeltaMemory):
            eta, alpha = block.memory.rates(seen)
            found = alpha - erase(block.memory.objective, block.memory.rule) * eta
        elif isinstance(block.memory, SelfModifyingTitans):
            c = erase("l2", "dgd")
            along = [alpha - c * eta + eta * (v * k).sum(-1, True) for k, v, eta, alpha in written(block, seen)]
            found = torch.cat(along)
        else:
            return None
    return [float(found.min()), float(found.max())]


def written(block: Any, x: Any) -> list[Any]:
    """Key, value, rate and retention of each write that a self-modifying memory makes while it reads x."""
    bank, seen = block.memory.memories, []
    write = bank.write

    def watched(live: Any, anchor: Any, at: Any, *rest: Any) -> Any:
        seen.append((at.k, at.v, at.eta, at.alpha))
        return write(live, anchor, at, *rest)

    bank.write = watched
    try:
        block.memory(x)
    finally:
        del bank.write
    return seen


def main(workers: int) -> None:
    from cells import compute  # here: a claim is measured from this file alone, wherever it lies

    figure(compute(OUT, cells(), one, ("arm", "language", "seed"), spoken, workers))


def measure(seeds: list[int]) -> float:
    """The number of seeds with every string of both bins right."""
    rows = [one((CLAIMED[0], "parity", seed)) for seed in seeds]
    for row in rows:
        print(spoken(row), file=sys.stderr)
    return sum(row["bin 0"] == row["bin 1"] == 1 for row in rows)


def spoken(r: dict[str, Any]) -> str:
    bins = ", ".join(f"{name} {r[name]:.3f}" for name in BINS)
    range_of = "" if r["eigenvalues"] is None else " eigenvalues {:+.3f} to {:+.3f}".format(*r["eigenvalues"])
    about = f"{r['arm']:32} {r['language']:9} seed {r['seed']}"
    return f"{about}: {bins}, loss {r['loss']:.4f},{range_of} {r['seconds']:.0f} s"


def figure(rows: list[dict[str, Any]]) -> None:
    """Arms by languages, bin 0 / bin 1 / 256 in each cell, coloured by bin 1."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = list(ARMS)
    drawing = Figure(figsize=(10, 0.55 * len(arms) + 1.6), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    value = np.full((len(arms), len(LANGUAGES)), np.nan)
    for i, arm in enumerate(arms):
        for j, language in enumerate(LANGUAGES):
            found = [r for r in rows if r["arm"] == arm and r["language"] == language]
            if not found:
                continue
            means = [float(np.mean([r[name] for r in found])) for name in BINS]
            value[i, j] = means[1]
            text = " / ".join(f"{100 * m:.0f}" for m in means) + (f"\n({len(found)} seeds)" if len(found) > 1 else "")
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if means[1] < 0.6 else "black")
    axes.imshow(value, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(LANGUAGES)), LANGUAGES)
    axes.set_yticks(range(len(arms)), arms)
    axes.set_title("Whole strings right, percent: lengths 2-50 / 51-100 / 256 (trained on 2-50)")
    drawing.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
