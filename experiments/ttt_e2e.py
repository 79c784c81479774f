"""Does a language model that learns while it reads keep gaining beyond its window? TTT-E2E against its controls.

Bytes of the Python standard library (a directory of texts of your own: --data DIR), judged on files that were not
trained on: 256 sequences of 512 bytes, 8 windows of 64. Four blocks of width 128 and about 0.8 million parameters, the
last block with a prime MLP where the arm has one; chunks of 16 bytes, inner rate 1 after a third of the steps, clipped.
Arms, all trained alike:

    end-to-end      the outer gradient passes every update (TTT-E2E)
    first order     it passes none
    off             no update in training: read without (a sliding window) and with updates at an inner rate (naive)
    full            full attention
    others          hybrid 5:1 (six thinner blocks), Mamba-2, Gated DeltaNet, TTT-Linear, TTT-MLP, and attention with a
                    pruned cache of 64 tokens (StreamingLLM, H2O)
    with a +        first order, off and full for as many seconds as end-to-end takes, not as many steps; how many
                    steps that is, is measured first, step beside step
    with a =        the pruned caches with as many bytes of state as end-to-end holds, fast weights included, and not
                    as the sliding window holds

The outer rate of each arm is the best of three, and of more by factors of two until the best is not at the end, on a
third of the steps with seed 0; the inner rate of naive is the best of five for that model. Both are judged on sequences
that are not those of the result. Arms with a + or = take the rate of the arm they are named after. Then seeds 1 to 3
for the first four arms and those with a +, seed 1 for the others.
All differences are paired by sequence and shown by window. Their intervals are over the sequences, seeds averaged; what
another seed would change is shown beside them as the range over seeds.

"Keeps learning beyond the window" means: the gain over the same weights with updates off grows for three windows; it
does so surely, where each of the three steps from window to window is above zero with 95 percent.

Expected, written before it was run: end-to-end .2 to .5 bits below the sliding window at matched steps and .05 to .4 at
matched seconds, below first order and naive, too; its gain over updates off grows for three windows at least, then
stays; more of the way to full attention than the whole (this small, full attention trains slowly); the others between
the sliding window and end-to-end.

Budget: two hours of two cores were planned; with rates beyond the first three, equal seconds and equal states it takes
more, reports/LOG.md says how much. Resumed cell by cell from reports/ttt_e2e.jsonl. Figure: reports/ttt_e2e.png.
Run: .venv/bin/python experiments/ttt_e2e.py [--data DIR] [WORKERS]
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Callable
from functools import cache, partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cells import compute, read

from nested.report.drawing import MUTED, colour, drawn, marker
from nested.report.inline import save_png

OUT, SECONDS = Path("reports/ttt_e2e.jsonl"), Path("reports/ttt_e2e_seconds.json")
KEPT = Path("runs/ttt_e2e")  # weights of the models that are judged: the other experiments read with them
WINDOW, CHUNK, LENGTH, BATCH, STEPS = 64, 16, 512, 8, 600
JUDGED = (64, 256)  # sequences: half 0 of the text chooses rates, half 1 is what results are read from
RATES = [1.5e-3, 3e-3, 6e-3]
NAIVE = [0.1, 0.3, 1.0, 3.0, 10.0]
SHORT = STEPS // 3  # of a cell that chooses a rate
MORE = {"first order+": "first order", "sliding+": "off", "full+": "full"}  # as long as end-to-end takes
MAIN = ["end-to-end", "first order", "off", "full"]
OTHERS = ["hybrid", "Mamba-2", "Gated DeltaNet", "TTT-Linear", "TTT-MLP", "StreamingLLM", "H2O"]
EQUAL = {"StreamingLLM=": "StreamingLLM", "H2O=": "H2O"}  # in bytes of state
AFTER = {**MORE, **EQUAL}  # arm -> the arm whose outer rate it takes
SEEDS = {**dict.fromkeys([*MAIN, *MORE], (1, 2, 3)), **dict.fromkeys([*OTHERS, *EQUAL], (1,))}
GAINS = ("end-to-end", "first order", "naive")  # read with updates
MEMORY = "nested.memory."
PRUNED = f"{MEMORY}pruned_attention"
ARMS: dict[str, dict[str, Any]] = {
    "end-to-end": {"prime": 1, "hidden": 256},
    "first order": {"prime": 1, "hidden": 256, "inner": "first_order"},
    "off": {"prime": 1, "hidden": 256, "inner": "off"},
    "full": {"hidden": 320, "window": None},
    "hybrid": {"hidden": 156, "depth": 6, "other": {"_target_": f"{MEMORY}window_attention.WindowAttention"}},
    "Mamba-2": {"hidden": 190, "mixer": {"_target_": f"{MEMORY}mamba2.Mamba2", "key_size": 64}},
    "Gated DeltaNet": {"hidden": 142, "mixer": {"_target_": f"{MEMORY}gated_delta_net.GatedDeltaNet"}},
    "TTT-Linear": {"hidden": 308, "mixer": {"_target_": f"{MEMORY}ttt.TTTLinear"}},
    "TTT-MLP": {"hidden": 230, "mixer": {"_target_": f"{MEMORY}ttt.TTTMLP"}},
    "StreamingLLM": {"hidden": 320, "mixer": {"_target_": f"{PRUNED}.StreamingAttention", "budget": WINDOW}},
    "H2O": {"hidden": 320, "mixer": {"_target_": f"{PRUNED}.HeavyHitterAttention", "budget": WINDOW}},
    "StreamingLLM=": {"hidden": 320, "mixer": {"_target_": f"{PRUNED}.StreamingAttention", "budget": 159}},
    "H2O=": {"hidden": 320, "mixer": {"_target_": f"{PRUNED}.HeavyHitterAttention", "budget": 156}},
}
Cell = tuple[str, float, int, int, str]  # arm, outer rate, seed, steps, which text


def model_of(arm: str, steps: int = STEPS) -> Any:
    """The arm's model; those with a prime MLP have the level that reads with it, whose rate warms up over the steps."""
    from nested.levels import Level
    from nested.signature import build

    given = dict(ARMS[MORE.get(arm, arm)])
    window = {"_target_": f"{MEMORY}window_attention.WindowAttention", "window": given.pop("window", WINDOW)}
    levels = (reading(Level, warm=steps // 3),) if "prime" in given else ()
    return build(
        {"_target_": "nested.models.language.LanguageModel", "mixer": window, "width": 128, "depth": 4, "heads": 4,
         **given},
        "model", sample_shape=(LENGTH,), n_outputs=256, vocabulary=256, per_position=True, token_levels=levels,
    )  # fmt: skip


def reading(level: Any, eta: float = 1.0, warm: int = 0) -> Any:
    """The level of the prime MLPs."""
    return level("reading", ("*.prime.mlp.*",), CHUNK, "token", gather="mean", eta=eta, clip_norm=1.0,
                 eta_warmup_steps=warm)  # fmt: skip


def training(cell: Cell, train: Any) -> tuple[Any, Callable[[int], float]]:
    """A new model on one thread, and the step of that number of its training, which returns the loss."""
    import torch

    from nested.sequences.text import windows

    arm, rate, seed, steps, _ = cell
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = model_of(arm, steps)
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    draw = torch.Generator().manual_seed(seed)

    def step(number: int) -> float:
        model.step = number
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (number + 1) / 50) * min(1.0, (1 - number / steps) / 0.4)
        tokens = windows(train, LENGTH + 1, BATCH, draw)
        loss = model.nll(tokens[:, :-1], tokens[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return model, step


def trained(cell: Cell, train: Any) -> tuple[Any, float, float]:
    """The model after its steps on bytes, in evaluation mode; the mean loss of the last 50 steps; seconds.

    Its weights are kept, but for those of a cell that chooses a rate.
    """
    import torch

    model, step = training(cell, train)
    begun = time.perf_counter()
    lost = [step(number) for number in range(cell[3])]
    seconds = time.perf_counter() - begun
    if cell[3] != SHORT:
        KEPT.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), weights_of(cell))
    return model.eval(), float(np.mean(lost[-50:])), seconds


def beside(cell: tuple[str, str], data: str | None) -> dict[str, Any]:
    """How many steps of an arm one of end-to-end's takes, by processor time of steps in turn, in random order."""
    from timing import measured

    arm, text = cell
    train, calls = texts(data)[0], {}
    for each in ("end-to-end", arm):
        _, step = training((each, RATES[0], 0, STEPS, text), train)
        calls[each] = partial(step, 0)
    took = measured(calls, "cpu", 12)
    return {"arm": arm, "text": text, "ratio": float(np.median(took["end-to-end"]) / np.median(took[arm]))}


def weights_of(cell: Cell) -> Path:
    arm, rate, seed, steps, text = cell
    return KEPT / f"{text}-{arm}-{rate:g}-{seed}-{steps}.pt"


def judged_model(arm: str, data: str | None) -> Any:
    """The arm's judged model of seed 1; trained again where its weights are not kept."""
    import torch

    train, judged = texts(data)
    text = digest(train, judged)
    rows = [r for r in read(OUT) if (r["arm"], r["text"], r["seed"]) == (arm, text, 1) and r["steps"] != SHORT]
    if not rows:
        raise SystemExit(f"{OUT} has no judged {arm} of this text; run experiments/ttt_e2e.py first")
    cell = (arm, rows[0]["rate"], 1, rows[0]["steps"], text)
    if not weights_of(cell).exists():
        return trained(cell, train)[0]
    model = model_of(arm).eval()
    model.load_state_dict(torch.load(weights_of(cell)))
    return model


def one(cell: Cell, data: str | None) -> dict[str, Any]:
    """Train one model; bits per byte of each judged sequence and window, in every way in which it can be read."""
    arm, rate, seed, steps, text = cell
    train, judged = texts(data)
    model, last, seconds = trained(cell, train)
    tokens = placed(judged, half=0 if steps == SHORT else 1)
    ways = {name: read_by_window(model, tokens, eta) for name, eta in ways_of(arm).items()}
    about = {"arm": arm, "rate": rate, "seed": seed, "steps": steps, "text": text, "seconds": seconds}
    return {**about, "parameters": sum(p.numel() for p in model.parameters()), "train": last, "windows": ways}


def ways_of(arm: str) -> dict[str, float | None]:
    """Name -> inner rate with which the model is read; None: no level learns."""
    of = MORE.get(arm, arm)
    if of in ("end-to-end", "first order"):
        return {"frozen": None, "reading": 1.0}
    return {"frozen": None, **({f"eta {eta:g}": eta for eta in NAIVE} if of == "off" else {})}


def read_by_window(model: Any, tokens: Any, eta: float | None) -> list[list[float]]:
    """Bits per byte, (sequences, windows)."""
    import torch

    from nested.levels import Level

    if eta is not None:
        model.levels = (reading(Level, eta),)
    with torch.no_grad():
        found = [model.nll(t[:, :-1], t[:, 1:], frozen=eta is None) for t in tokens.split(16)]
    by_window = torch.cat(found).unflatten(1, (-1, WINDOW)).mean(-1) / math.log(2)
    return [[round(float(b), 4) for b in row] for row in by_window]


@cache
def texts(data: str | None) -> tuple[Any, Any]:
    """(bytes to train on, bytes to judge on)."""
    from nested.sequences import text

    domains = text.folders(Path(data)) if data else text.standard_library()
    return text.parts([file for files in domains.values() for file in files])


def digest(*parts: Any) -> str:
    """Which text it is: numbers of another one (or of another version of Python's own) are never beside these."""
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:12]


def placed(text: Any, half: int) -> Any:
    """Sequences evenly spread over one half of the text, (N, T + 1)."""
    import torch

    size = len(text) // 2
    first = torch.linspace(0, size - LENGTH - 2, JUDGED[half]).long() + half * size
    return text[first.unsqueeze(1) + torch.arange(LENGTH + 1)].long()


def said(row: dict[str, Any]) -> str:
    ways = {name: float(np.mean(bits)) for name, bits in row["windows"].items()}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in ways.items())
    return f"{row['arm']} {row['rate']:g} seed {row['seed']}, {row['steps']} steps: {shown}; {row['seconds']:.0f} s"


def chosen(rows: list[dict[str, Any]], arm: str) -> list[dict[str, Any]]:
    """The rows of an arm that choose its rate, the best first: read in the way that the arm is trained for."""
    way = "reading" if arm in ("end-to-end", "first order") else "frozen"
    of_arm = [r for r in rows if r["arm"] == arm and r["steps"] == SHORT]
    return sorted(of_arm, key=lambda r: float(np.mean(r["windows"][way])))


def beyond(rows: list[dict[str, Any]], arm: str) -> list[float]:
    """The next rate to try of an arm whose best is at the end of those tried; none where it is between others."""
    tried = [r["rate"] for r in chosen(rows, arm)]
    return [tried[0] / 2] if tried[0] == min(tried) else [tried[0] * 2] if tried[0] == max(tried) else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workers", nargs="?", type=int, default=2)
    parser.add_argument("--data", help="a directory of texts; the standard library without it")
    asked = parser.parse_args()
    names, text = ("arm", "rate", "seed", "steps", "text"), digest(*texts(asked.data))
    measure = partial(beside, data=asked.data)
    pairs = [(of, text) for of in [*MORE.values(), *OTHERS, *EQUAL]]
    shares = compute(SECONDS, pairs, measure, ("arm", "text"), lambda r: f"{r['ratio']:.2f} steps of {r['arm']} to one")
    ratios = {"end-to-end": 1.0, **{r["arm"]: r["ratio"] for r in shares}}
    step = partial(compute, OUT, one=partial(one, data=asked.data), names=names, said=said, workers=asked.workers)
    tried = [*MAIN, *OTHERS]
    cells: list[Cell] = [(arm, rate, 0, SHORT, text) for arm in tried for rate in RATES]
    tuned = step(cells=cells)
    while more := [(arm, rate, 0, SHORT, text) for arm in tried for rate in beyond(tuned, arm)]:
        cells += more
        tuned = step(cells=cells)
    steps = {arm: round(STEPS * ratios[of]) for arm, of in MORE.items()}
    rates = {arm: chosen(tuned, AFTER.get(arm, arm))[0]["rate"] for arm in SEEDS}
    cells = [(arm, rates[arm], seed, steps.get(arm, STEPS), text) for arm, seeds in SEEDS.items() for seed in seeds]
    found = Found(step(cells=cells), naive(tuned), ratios)
    print("\n".join(conclusions(found)))
    save_png(figure(found), OUT.with_suffix(".png"))


# -- what came out -----------------------------------------------------------------------------------------------------


def naive(tuned: list[dict[str, Any]]) -> str:
    """The way in which naive reads: at the inner rate that is best for the model that chose the outer rate."""
    windows = chosen(tuned, "off")[0]["windows"]
    return min((f"eta {eta:g}" for eta in NAIVE), key=lambda way: float(np.mean(windows[way])))


class Found(NamedTuple):
    """The rows of the models that are judged, how naive reads, and an arm's steps in the time of one of end-to-end."""

    rows: list[dict[str, Any]]
    naive: str
    ratios: dict[str, float]

    def of(self, arm: str) -> list[dict[str, Any]]:
        """The rows of an arm, one a seed; "naive" is the arm "off" read with updates, "naive+" is "sliding+"."""
        trained_as = {"naive": "off", "naive+": "sliding+"}.get(arm, arm)
        return [r for r in self.rows if r["arm"] == trained_as]

    def way(self, arm: str) -> str:
        """How the arm is read: what trains with updates, with them."""
        trained_with = MORE.get(arm, arm) in ("end-to-end", "first order")
        return self.naive if arm.startswith("naive") else "reading" if trained_with else "frozen"

    def bits(self, arm: str, way: str | None = None) -> Any:
        """Bits per byte: (seeds, sequences, windows)."""
        return np.array([r["windows"][way or self.way(arm)] for r in self.of(arm)])

    def minus(self, arm: str, other: str) -> str:
        """The difference of two arms, paired by sequence, and its range over seeds where there are several of both."""
        from nested.metrics import paired

        mine, theirs = self.bits(arm).mean(2), self.bits(other).mean(2)
        mean, half, _ = paired(mine.mean(0) - theirs.mean(0))
        if min(len(mine), len(theirs)) < 2:
            return f"{mean:+.3f} +- {half:.3f}"
        each = (mine - theirs).mean(1)
        return f"{mean:+.3f} +- {half:.3f} ({each.min():+.3f} to {each.max():+.3f})"

    def gain(self, arm: str) -> Any:
        """What updates save against the same weights without: (sequences, windows)."""
        return (self.bits(arm, "frozen") - self.bits(arm)).mean(0)


SHOWN = ["end-to-end", "first order", "off", "naive", "full", "first order+", "sliding+", "naive+", "full+", *OTHERS,
         *EQUAL]  # fmt: skip


def conclusions(found: Found) -> list[str]:
    """Markdown: every arm beside the sliding window; the share of the way to full attention; the gain by window.

    Time is that of training, end-to-end's being 1; state is what is held after a sequence, KiB.
    """
    lines = ["| arm | outer rate | steps | time | state | bits per byte | minus off | minus end-to-end |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for arm in SHOWN:
        rows = found.of(arm)
        differences = ("-" if arm == other else found.minus(arm, other) for other in ("off", "end-to-end"))
        name = f"{arm}, {found.naive}" if arm.startswith("naive") else arm
        trained_as, steps = str(rows[0]["arm"]), rows[0]["steps"]
        time_taken = steps / STEPS / found.ratios[MORE.get(trained_as, trained_as)]
        held = state_bytes(trained_as, found.way(arm) != "frozen") / 1024
        shown = [name, f"{rows[0]['rate']:g}", str(steps), f"{time_taken:.2f}", f"{held:.0f}"]
        shown += [f"{found.bits(arm).mean():.3f}", *differences]
        lines.append(f"| {' | '.join(shown)} |")
    lines += [closed(found, "off", "full", "steps"), closed(found, "sliding+", "full+", "seconds")]
    return lines + [line for arm in GAINS for line in by_window(found, arm)]


def state_bytes(arm: str, learns: bool) -> int:
    """What a model holds after one sequence: of each block's mixer and, where it learns, the fast weights."""
    import torch

    from nested.cost import tensor_bytes
    from nested.inner import initial_state, read

    model = model_of(arm).eval()
    levels = model.levels if learns else ()
    with torch.no_grad():
        start = initial_state(model, levels, 1)
        after = read(model, levels, start, torch.zeros(1, LENGTH + 1, dtype=torch.long))[1]
    return tensor_bytes([after.carry, after.fast])


def closed(found: Found, low: str, high: str, matched: str) -> str:
    """The share of the distance from `low` to `high` that end-to-end closes, where there is such a distance."""
    from nested.metrics import paired

    ours, near, far = (found.bits(arm).mean((0, 2)) for arm in ("end-to-end", low, high))
    distance, half, _ = paired(near - far)
    if distance <= (half or 0.0):
        return (f"at matched {matched}: no distance to close, as {high} reads no better than {low} "
                f"({-distance:+.3f} +- {half:.3f})")  # fmt: skip
    picks = np.random.default_rng(0).integers(len(ours), size=(10_000, len(ours)))
    least, most = np.percentile((near - ours)[picks].mean(1) / (near - far)[picks].mean(1), (2.5, 97.5))
    share = (near - ours).mean() / distance
    return f"at matched {matched}: {share:.2f} of the way from {low} to {high} ({least:.2f} to {most:.2f})"


def by_window(found: Found, arm: str) -> list[str]:
    """The gain in each window, how much it grows from each to the next, and for how many windows it is sure to grow."""
    from nested.metrics import paired

    gains = found.gain(arm)
    of_windows = [paired(column)[:2] for column in gains.T]
    of_steps = [paired(column)[:2] for column in np.diff(gains).T]
    lines = [f"{arm}: {what}: " + ", ".join(f"{mean:+.3f} +- {half:.3f}" for mean, half in pairs)
             for what, pairs in (("gain by window", of_windows), ("growth to the next", of_steps))]  # fmt: skip
    grows = [sum(takewhile(bool, (mean > sure * (half or 0.0) for mean, half in of_steps))) for sure in (0, 1)]
    return [*lines, f"{arm}: the gain grows for {grows[0]} windows, surely for {grows[1]}; three are wanted"]


@drawn
def figure(found: Found) -> Any:
    """The gain by window, and every arm's difference to the sliding window."""
    from matplotlib.figure import Figure

    from nested.metrics import half_width, paired

    shown = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = shown.subplots(1, 2)
    for slot, arm in enumerate(GAINS):
        gains = found.gain(arm)
        place = np.arange(1, gains.shape[1] + 1) + 0.08 * (slot - 1)
        left.errorbar(
            place, gains.mean(0), half_width(gains), color=colour(slot), marker=marker(slot), capsize=2, label=arm
        )
    left.axhline(0, color=MUTED, linewidth=0.8)
    left.set_xlabel(f"window of {WINDOW} bytes")
    left.set_ylabel("bits per byte saved by updates, same weights")
    left.legend()
    arms = [arm for arm in SHOWN if arm != "off"]
    for row, arm in enumerate(arms):
        mean, half, _ = paired((found.bits(arm).mean(0) - found.bits("off").mean(0)).mean(1))
        right.errorbar(mean, row, xerr=half, fmt="o", color=colour(0 if arm == "end-to-end" else 1), capsize=2)
    right.set_yticks(range(len(arms)), arms)
    right.invert_yaxis()
    right.axvline(0, color=MUTED, linewidth=0.8)
    right.set_xlabel("bits per byte minus the sliding window's (left is better), 95 percent")
    return shown


if __name__ == "__main__":
    main()
