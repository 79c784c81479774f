"""Does a language model that learns while it reads keep gaining beyond its window? TTT-E2E against its controls.

Bytes of the Python standard library (a directory of texts of your own: --data DIR), judged on files that were not
trained on: 64 sequences of 512 bytes, 8 windows of 64. Four blocks of width 128 and about 0.8 million parameters, the
last block with a prime MLP where the arm has one; chunks of 16 bytes, inner rate 1, clipped. Arms, all trained alike:

    end-to-end      the outer gradient passes every update (TTT-E2E)
    first order     it passes none
    off             no update in training: read without (a sliding window) and with updates at five inner rates (naive)
    full            full attention
    sliding+, full+ the sliding window and full attention for as many seconds as end-to-end takes, not as many steps
    others          hybrid 5:1 (six thinner blocks), Mamba-2, Gated DeltaNet, TTT-Linear, TTT-MLP, and attention with a
                    pruned cache of 64 tokens (StreamingLLM, H2O)

The outer rate of each arm is the best of three, and of more by factors of two until the best is not at the end, on a
third of the steps with seed 0, judged on validation sequences that are not those of the result. Then seeds 1 to 3 for
the first four arms and the two at equal seconds, seed 1 for the others. All differences are paired by sequence, and
shown by window.

"Keeps learning beyond the window" means: the gain over the same weights with updates off grows for three windows.

Expected, written before it was run: end-to-end .2 to .5 bits below the sliding window at matched steps and .05 to .4 at
matched seconds, below first order and naive, too; its gain over updates off grows for three windows at least, then
stays; more of the way to full attention than the whole (this small, full attention trains slowly); the others between
the sliding window and end-to-end.

Budget: two hours of two cores were planned; with rates beyond the first three it takes three or more. Resumed cell by
cell from reports/ttt_e2e.jsonl. Figure: reports/ttt_e2e.png.
Run: .venv/bin/python experiments/ttt_e2e.py [--data DIR] [WORKERS]
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cells import compute, read

from nested.report.drawing import MUTED, colour, drawn, marker
from nested.report.inline import save_png

OUT = Path("reports/ttt_e2e.jsonl")
KEPT = Path("runs/ttt_e2e")  # weights of the models that are judged: the other experiments read with them
WINDOW, CHUNK, LENGTH, BATCH, STEPS, JUDGED = 64, 16, 512, 8, 600, 64
RATES = [1.5e-3, 3e-3, 6e-3]
NAIVE = [0.1, 0.3, 1.0, 3.0, 10.0]
SHORT = STEPS // 3  # of a cell that chooses a rate
MORE = {"sliding+": ("off", 1.8), "full+": ("full", 1.95)}  # steps in the seconds of one of end-to-end's; measured
MAIN = ["end-to-end", "first order", "off", "full"]
OTHERS = ["hybrid", "Mamba-2", "Gated DeltaNet", "TTT-Linear", "TTT-MLP", "StreamingLLM", "H2O"]
SEEDS = {**dict.fromkeys([*MAIN, *MORE], (1, 2, 3)), **dict.fromkeys(OTHERS, (1,))}
GAINS = ("end-to-end", "first order", "naive")  # read with updates
MEMORY = "nested.memory."
ARMS: dict[str, dict[str, Any]] = {
    "end-to-end": {"prime": 1, "hidden": 256},
    "first order": {"prime": 1, "hidden": 256, "inner": "first_order"},
    "off": {"prime": 1, "hidden": 256, "inner": "off"},
    "full": {"hidden": 320, "window": None},
    "hybrid": {"hidden": 172, "depth": 6, "other": {"_target_": f"{MEMORY}window_attention.WindowAttention"}},
    "Mamba-2": {"hidden": 190, "mixer": {"_target_": f"{MEMORY}mamba2.Mamba2", "key_size": 64}},
    "Gated DeltaNet": {"hidden": 142, "mixer": {"_target_": f"{MEMORY}gated_delta_net.GatedDeltaNet"}},
    "TTT-Linear": {"hidden": 308, "mixer": {"_target_": f"{MEMORY}ttt.TTTLinear"}},
    "TTT-MLP": {"hidden": 230, "mixer": {"_target_": f"{MEMORY}ttt.TTTMLP"}},
    "StreamingLLM": {
        "hidden": 320, "mixer": {"_target_": f"{MEMORY}pruned_attention.StreamingAttention", "budget": WINDOW},
    },
    "H2O": {"hidden": 320, "mixer": {"_target_": f"{MEMORY}pruned_attention.HeavyHitterAttention", "budget": WINDOW}},
}  # fmt: skip
Cell = tuple[str, float, int, int, str]  # arm, outer rate, seed, steps, which text


def model_of(arm: str) -> Any:
    """The arm's model; those with a prime MLP have the level that reads with it."""
    from nested.levels import Level
    from nested.signature import build

    given = dict(ARMS[MORE[arm][0] if arm in MORE else arm])
    window = {"_target_": f"{MEMORY}window_attention.WindowAttention", "window": given.pop("window", WINDOW)}
    levels = (reading(Level),) if "prime" in given else ()
    return build(
        {"_target_": "nested.models.language.LanguageModel", "mixer": window, "width": 128, "depth": 4, "heads": 4,
         **given},
        "model", sample_shape=(LENGTH,), n_outputs=256, vocabulary=256, per_position=True, token_levels=levels,
    )  # fmt: skip


def reading(level: Any, eta: float = 1.0) -> Any:
    """The level of the prime MLPs; its rate warms up over a third of the steps."""
    return level("reading", ("*.prime.mlp.*",), CHUNK, "token", gather="mean", eta=eta, clip_norm=1.0,
                 eta_warmup_steps=STEPS // 3)  # fmt: skip


def trained(cell: Cell, train: Any) -> tuple[Any, float, float]:
    """The model after its steps on bytes, in evaluation mode; the mean loss of the last 50 steps; seconds.

    Its weights are kept, but for those of a cell that chooses a rate.
    """
    import torch

    from nested.sequences.text import windows

    arm, rate, seed, steps, _ = cell
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = model_of(arm)
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    draw = torch.Generator().manual_seed(seed)
    begun, lost = time.perf_counter(), []
    for step in range(steps):
        model.step = step
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 50) * min(1.0, (1 - step / steps) / 0.4)
        tokens = windows(train, LENGTH + 1, BATCH, draw)
        loss = model.nll(tokens[:, :-1], tokens[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        lost.append(loss.item())
    seconds = time.perf_counter() - begun
    if steps != SHORT:
        KEPT.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), weights_of(cell))
    return model.eval(), float(np.mean(lost[-50:])), seconds


def weights_of(cell: Cell) -> Path:
    arm, rate, seed, steps, text = cell
    return KEPT / f"{text}-{arm}-{rate:g}-{seed}-{steps}.pt"


def end_to_end(data: str | None) -> Any:
    """The end-to-end model of seed 1, at its best rate; trained where its weights are not kept."""
    import torch

    train, judged = texts(data)
    of_text = [row for row in read(OUT) if row["text"] == digest(train, judged)]
    cell = ("end-to-end", best(of_text, "end-to-end"), 1, STEPS, digest(train, judged))
    if not weights_of(cell).exists():
        return trained(cell, train)[0]
    model = model_of("end-to-end").eval()
    model.load_state_dict(torch.load(weights_of(cell)))
    return model


def one(cell: Cell, data: str | None) -> dict[str, Any]:
    """Train one model; bits per byte of each judged sequence and window, in every way in which it can be read."""
    arm, rate, seed, steps, text = cell
    train, judged = texts(data)
    model, last, seconds = trained(cell, train)
    part = 0 if steps == SHORT else 1  # rates are chosen on other sequences than results are read from
    ways = {name: read_by_window(model, placed(judged, part), eta) for name, eta in ways_of(arm).items()}
    about = {"arm": arm, "rate": rate, "seed": seed, "steps": steps, "text": text, "seconds": seconds}
    return {**about, "parameters": sum(p.numel() for p in model.parameters()), "train": last, "windows": ways}


def ways_of(arm: str) -> dict[str, float | None]:
    """Name -> inner rate with which the model is read; None: no level learns."""
    if "prime" not in ARMS[MORE[arm][0] if arm in MORE else arm]:
        return {"frozen": None}
    if arm in ("end-to-end", "first order"):
        return {"frozen": None, "reading": 1.0}
    return {"frozen": None, **{f"eta {eta:g}": eta for eta in NAIVE}}


def read_by_window(model: Any, tokens: Any, eta: float | None) -> list[list[float]]:
    """Bits per byte, (sequences, windows)."""
    import torch

    from nested.levels import Level

    if eta is not None:
        model.levels = (reading(Level, eta),)
    with torch.no_grad():
        found = [model.nll(t[:, :-1], t[:, 1:], frozen=eta is None) for t in tokens.split(16)]
    by_window = torch.cat(found).unflatten(1, (-1, WINDOW)).mean(-1) / math.log(2)
    return [[round(float(b), 5) for b in row] for row in by_window]


def texts(data: str | None) -> tuple[Any, Any]:
    """(bytes to train on, bytes to judge on)."""
    from nested.sequences import text

    domains = text.folders(Path(data)) if data else text.standard_library()
    return text.parts([file for files in domains.values() for file in files])


def digest(*parts: Any) -> str:
    """Which text it is: numbers of another one (or of another version of Python's own) are never beside these."""
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:12]


def placed(text: Any, part: int) -> Any:
    """Sequences evenly spread over one half of the text, (64, T + 1)."""
    import torch

    half = len(text) // 2
    first = torch.linspace(0, half - LENGTH - 2, JUDGED).long() + part * half
    return text[first.unsqueeze(1) + torch.arange(LENGTH + 1)].long()


def said(row: dict[str, Any]) -> str:
    ways = {name: float(np.mean(bits)) for name, bits in row["windows"].items()}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in ways.items())
    return f"{row['arm']} {row['rate']:g} seed {row['seed']}, {row['steps']} steps: {shown}; {row['seconds']:.0f} s"


def best(rows: list[dict[str, Any]], arm: str) -> float:
    """The outer rate whose short run reads best, in the way that the arm is about."""
    of_arm = [r for r in rows if r["arm"] == arm and r["steps"] == SHORT]
    return min(of_arm, key=lambda r: min(float(np.mean(bits)) for bits in r["windows"].values()))["rate"]


def beyond(rows: list[dict[str, Any]], arm: str) -> list[float]:
    """The next rate to try of an arm whose best is at the end of those tried; none where it is between others."""
    tried = [r["rate"] for r in rows if r["arm"] == arm and r["steps"] == SHORT]
    found = best(rows, arm)
    return [found / 2] if found == min(tried) else [found * 2] if found == max(tried) else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workers", nargs="?", type=int, default=2)
    parser.add_argument("--data", help="a directory of texts; the standard library without it")
    asked = parser.parse_args()
    names, text = ("arm", "rate", "seed", "steps", "text"), digest(*texts(asked.data))
    step = partial(compute, OUT, one=partial(one, data=asked.data), names=names, said=said, workers=asked.workers)
    tried = [*MAIN, *OTHERS]
    cells: list[Cell] = [(arm, rate, 0, SHORT, text) for arm in tried for rate in RATES]
    rows = step(cells=cells)
    while more := [(arm, rate, 0, SHORT, text) for arm in tried for rate in beyond(rows, arm)]:
        cells += more
        rows = step(cells=cells)
    rates = {arm: best(rows, arm) for arm in tried} | {arm: best(rows, of) for arm, (of, _) in MORE.items()}
    steps = {arm: round(STEPS * share) for arm, (_, share) in MORE.items()}
    cells = [(arm, rates[arm], seed, steps.get(arm, STEPS), text) for arm, seeds in SEEDS.items() for seed in seeds]
    rows = step(cells=cells)
    print("\n".join(conclusions(rows)))
    save_png(figure(rows), OUT.with_suffix(".png"))


# -- what came out -----------------------------------------------------------------------------------------------------


def bits(rows: list[dict[str, Any]], arm: str, way: str) -> Any:
    """Bits per byte of an arm read in a way, mean over its seeds: (sequences, windows)."""
    return np.mean([r["windows"][way] for r in rows if r["arm"] == arm], 0)


def way_of(rows: list[dict[str, Any]], arm: str) -> str:
    """How the arm is read: what trains with updates, with them; naive is "off" with updates, at what is best here."""
    if arm in ("end-to-end", "first order"):
        return "reading"
    if arm == "naive":
        return min((f"eta {eta:g}" for eta in NAIVE), key=lambda way: bits(rows, "off", way).mean())
    return "frozen"


def read_as(rows: list[dict[str, Any]], arm: str) -> Any:
    """(sequences, windows) of an arm, or of "naive", which is the arm "off" read with updates."""
    return bits(rows, "off" if arm == "naive" else arm, way_of(rows, arm))


def conclusions(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: every arm against the sliding window; the share of the way to full attention; the gain by window."""
    from nested.metrics import paired

    lines = ["| arm | outer rate | bits per byte | minus sliding window, paired by sequence | minus end-to-end |"]
    lines.append("|---|---|---|---|---|")
    ours, sliding = read_as(rows, "end-to-end").mean(1), read_as(rows, "off").mean(1)
    for arm in ["end-to-end", "first order", "off", "naive", "full", *MORE, *OTHERS]:
        mine = read_as(rows, arm).mean(1)
        rate = next(r["rate"] for r in rows if r["arm"] == ("off" if arm == "naive" else arm))
        differences = [paired(mine - other)[:2] if (mine != other).any() else None for other in (sliding, ours)]
        shown = " | ".join("-" if d is None else f"{d[0]:+.3f} +- {d[1]:.3f}" for d in differences)
        name = f"naive, {way_of(rows, arm)}" if arm == "naive" else arm
        lines.append(f"| {name} | {rate:g} | {mine.mean():.3f} | {shown} |")
    for other, names in (("matched steps", ("off", "full")), ("matched seconds", tuple(MORE))):
        low, high = (read_as(rows, name).mean(1) for name in names)
        share, (least, most) = closed(low, ours, high)
        lines.append(f"at {other}, {share:.2f} of the way from {names[0]} to {names[1]} ({least:.2f} to {most:.2f})")
    for arm in GAINS:
        means, halves = gain(rows, arm)
        shown = ", ".join(f"{m:+.3f} +- {h:.3f}" for m, h in zip(means, halves))
        lines.append(f"{arm}: gain over updates off, by window: {shown}")
    return lines


def closed(low: Any, ours: Any, high: Any) -> tuple[float, tuple[float, float]]:
    """Share of the distance from `low` to `high` that is closed, and its 95 percent interval over the sequences."""
    share = (low - ours).mean() / (low - high).mean()
    picks = np.random.default_rng(0).integers(len(low), size=(10_000, len(low)))
    drawn = (low - ours)[picks].mean(1) / (low - high)[picks].mean(1)
    least, most = np.percentile(drawn, (2.5, 97.5))
    return float(share), (float(least), float(most))


def gain(rows: list[dict[str, Any]], arm: str) -> tuple[Any, Any]:
    """What updates save against the same weights without, by window: mean over sequences, half width, (windows,)."""
    from nested.metrics import half_width

    saved = bits(rows, "off" if arm == "naive" else arm, "frozen") - read_as(rows, arm)
    return saved.mean(0), half_width(saved)


@drawn
def figure(rows: list[dict[str, Any]]) -> Any:
    """The gain by window, and every arm's difference to the sliding window."""
    from matplotlib.figure import Figure

    from nested.metrics import paired

    shown = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = shown.subplots(1, 2)
    for slot, arm in enumerate(GAINS):
        means, halves = gain(rows, arm)
        place = np.arange(1, len(means) + 1) + 0.08 * (slot - 1)
        left.errorbar(place, means, halves, color=colour(slot), marker=marker(slot), capsize=2, label=arm)
    left.axhline(0, color=MUTED, linewidth=0.8)
    left.set_xlabel(f"window of {WINDOW} bytes")
    left.set_ylabel("bits per byte saved by updates, same weights")
    left.legend()
    sliding = read_as(rows, "off").mean(1)
    arms = ["end-to-end", "first order", "naive", "full", *MORE, *OTHERS]
    for row, arm in enumerate(arms):
        mean, half, _ = paired(read_as(rows, arm).mean(1) - sliding)
        right.errorbar(mean, row, xerr=half, fmt="o", color=colour(0 if arm == "end-to-end" else 1), capsize=2)
    right.set_yticks(range(len(arms)), arms)
    right.invert_yaxis()
    right.axvline(0, color=MUTED, linewidth=0.8)
    right.set_xlabel("bits per byte minus the sliding window's (left is better), 95 percent")
    return shown


if __name__ == "__main__":
    main()
