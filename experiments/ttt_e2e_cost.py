"""What TTT-E2E costs: seconds per token of prefill and decode as the context grows, and memory of a training step.

Flat: the ratio of 64 windows to 4 windows is at most 1.1, beside full attention, whose ratio grows. Each context is
measured in turn, seven rounds in one process, and the ratio is the median over the rounds' ratios, beside the least and
the largest.

Memory: the peak of one outer step's resident memory above that before it, in a process of its own: without any switch,
with each alone (chunks computed again; groups of them; the lower blocks in segments; a batch differentiated sequence by
sequence) and with several together. Other rows are without one thing that is always on: keys and values as a list (off:
joined to one window after each chunk, which is what a chunk that is computed again keeps), the first suffix attention
outside of the inner loop, and attention for a block of queries at a time (off: all scores at once, at short contexts,
since it takes tokens squared). Its window holds 8 chunks of 64 tokens: chunks of up to 16 are one block of queries, and
a window of few chunks is no larger than what a list of them holds. The process reads its resident memory (VmRSS) before
the step, has Linux forget its earlier peak (clear_refs) and reads the new one (VmHWM) after it: the peak that getrusage
tells is taken over from the process that started it.

Budget: ten minutes of one core. Numbers: reports/ttt_e2e_cost.json, reports/ttt_e2e_memory.json.
Run: .venv/bin/python experiments/ttt_e2e_cost.py
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from cells import compute

OUT = Path("reports/ttt_e2e_cost.json")
WINDOW, CHUNK, WIDTH, BLOCKS = 64, 16, 128, 4
WINDOWS = [4, 16, 64]  # contexts, in windows
ROUNDS, DECODED = 7, 32
CONTEXTS = [1024, 2048, 4096, 8192]  # tokens, of the memory table
WIDE, LONG = 512, 64  # its window and chunk
BATCH, PRIME = 2, 2  # sequences of its step; blocks that learn, the second with its attention inside of the inner loop
SEGMENTS: dict[str, Any] = {"segment": 512}
SWITCHES: dict[str, tuple[dict[str, Any], int]] = {  # of the model; sequences differentiated at once
    "nothing": ({}, BATCH),
    "each chunk again": ({"checkpoint": "chunk"}, BATCH),
    "groups again": ({"checkpoint": "group"}, BATCH),
    "segments": (SEGMENTS, BATCH),
    "micro-batch": ({}, 1),
    "each chunk again, segments": ({"checkpoint": "chunk", **SEGMENTS}, BATCH),
    "groups again, segments": ({"checkpoint": "group", **SEGMENTS}, BATCH),
    "groups again, segments, micro-batch": ({"checkpoint": "group", **SEGMENTS}, 1),
}
WITHOUT = {  # the longest context of each
    "each chunk again, without the list of keys and values": 8192,
    "nothing, without attention outside of the loop": 8192,
    "nothing, without blocks of queries": 2048,
}


def model_of(reads: bool, window: int | None = WINDOW, chunk: int = CHUNK, **switches: Any) -> Any:
    """TTT-E2E, or the same blocks without its level."""
    from nested.levels import Level
    from nested.signature import build

    level = Level("reading", ("*.prime.mlp.*",), chunk, "token", gather="mean", eta=1.0, clip_norm=1.0)
    mixer = {"_target_": "nested.memory.window_attention.WindowAttention", "window": window}
    return build(
        {"_target_": "nested.models.language.LanguageModel", "mixer": mixer, "width": WIDTH, "depth": BLOCKS,
         "heads": 4, "hidden": 2 * WIDTH, "prime": int(reads), **switches},
        "model", sample_shape=(chunk,), n_outputs=256, vocabulary=256, per_position=True,
        token_levels=(level,) if reads else (),
    )  # fmt: skip


def flat(cell: tuple[str]) -> dict[str, Any]:
    """Median seconds per token at each context, and of the rounds' ratios of the longest to the shortest."""
    import torch

    (arm,) = cell
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = model_of(arm == "TTT-E2E", WINDOW if arm != "full attention" else None).eval()
    rounds: dict[str, list[list[float]]] = {"prefill": [], "decode": []}
    for _ in range(ROUNDS):
        took = [seconds_per_token(model, n * WINDOW) for n in WINDOWS]
        for name, values in zip(rounds, zip(*took)):
            rounds[name].append(list(values))
    found: dict[str, Any] = {"arm": arm, "windows": WINDOWS}
    for name, rows in rounds.items():
        found[name] = [statistics.median(column) for column in zip(*rows)]
        found[f"{name}_ratios"] = [row[-1] / row[0] for row in rows]
        found[f"{name}_ratio"] = statistics.median(found[f"{name}_ratios"])
    return found


def seconds_per_token(model: Any, tokens: int) -> tuple[float, float]:
    """Of prefill, and of decoding two chunks after it."""
    import torch

    from nested.reading import generate, prefill

    text = torch.randint(256, (1, tokens))
    begun = time.perf_counter()
    reading = prefill(model, text, piece=4 * WINDOW)
    read = time.perf_counter()
    for _ in generate(model, reading, DECODED):
        pass
    return (read - begun) / tokens, (time.perf_counter() - read) / DECODED


def memory(cell: tuple[str, int]) -> dict[str, Any]:
    """Peak MiB of one outer step, measured in a process that has done nothing else."""
    switch, tokens = cell
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        peak, seconds = alone.submit(_step, switch, tokens).result()
    return {"switch": switch, "tokens": tokens, "mib": peak, "seconds": seconds}


def _step(switch: str, tokens: int) -> tuple[float, float]:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    what, _, without = switch.partition(", without ")
    switches, at_once = SWITCHES[what]
    model = model_of(True, WIDE, LONG, **{"prime": PRIME, **switches})
    text = torch.randint(256, (BATCH, tokens + 1))
    if without:
        _leave_out(model, without)

    def step(text: Any) -> None:
        for part in text.split(at_once):  # as the trainer does with trainer.micro_batch
            (len(part) / BATCH * model.nll(part[:, :-1], part[:, 1:]).mean()).backward()

    step(text[:, : 2 * LONG + 1])  # libraries are loaded, gradients are there
    before, begun = resident("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    step(text)
    seconds = time.perf_counter() - begun
    return resident("VmHWM") - before, seconds


def _leave_out(model: Any, what: str) -> None:
    """Undo, in this process, what the model always does."""
    import torch

    from nested.memory import window_attention

    if what == "attention outside of the loop":
        model.mixed = False
    elif what == "the list of keys and values":
        own = window_attention.WindowAttention.held

        def held(self: Any, state: Any, kept: Any) -> Any:
            entries = own(self, state, kept)
            return (tuple(torch.cat(tensors, 1) for tensors in zip(*entries)),)

        window_attention.WindowAttention.held = held
    else:
        blocks = window_attention.attention_hvp
        window_attention.attention_hvp = lambda q, k, v, window, backend: blocks(q, k, v, window, "reference")


def resident(which: str) -> float:
    """MiB of this process in memory now (VmRSS), or at most since the peak was last forgotten (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:")) / 1024


def said_flat(row: dict[str, Any]) -> str:
    shown = [
        f"{name} x {row[f'{name}_ratio']:.2f} ({min(row[f'{name}_ratios']):.2f} to {max(row[f'{name}_ratios']):.2f}; "
        f"{1e3 * row[name][0]:.2f} to {1e3 * row[name][-1]:.2f} ms a token)"
        for name in ("prefill", "decode")
    ]
    return f"{row['arm']}, {row['windows'][0]} to {row['windows'][-1]} windows: {', '.join(shown)}"


def said_memory(row: dict[str, Any]) -> str:
    return f"{row['tokens']} tokens, {row['switch']}: {row['mib']:.0f} MiB, {row['seconds']:.1f} s"


def main() -> None:
    arms = [(arm,) for arm in ("TTT-E2E", "sliding window", "full attention")]
    compute(OUT, arms, flat, ("arm",), said_flat)
    longest = dict.fromkeys(SWITCHES, max(CONTEXTS)) | WITHOUT
    cells = [(switch, tokens) for tokens in CONTEXTS for switch in longest if tokens <= longest[switch]]
    compute(OUT.with_stem("ttt_e2e_memory"), cells, memory, ("switch", "tokens"), said_memory)


if __name__ == "__main__":
    main()
