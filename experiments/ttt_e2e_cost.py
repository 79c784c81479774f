"""What TTT-E2E costs: seconds per token of prefill and decode as the context grows, and memory of a training step.

Flat: the ratio of 64 windows to 4 windows is at most 1.1, beside full attention, whose ratio grows. Each context is
measured in turn, seven rounds in one process, and the ratio is the median over the rounds' ratios.

Memory: the peak of one outer step's resident memory above that before it, in a process of its own, for each switch:
nothing; each chunk computed again; groups of chunks computed again; and the lower blocks in segments, too.

Budget: ten minutes of one core. Numbers: reports/ttt_e2e_cost.json.
Run: .venv/bin/python experiments/ttt_e2e_cost.py
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from pathlib import Path
from typing import Any

from cells import compute

OUT = Path("reports/ttt_e2e_cost.json")
WINDOW, CHUNK, WIDTH, BLOCKS = 64, 16, 128, 4
WINDOWS = [4, 16, 64]  # contexts, in windows
ROUNDS, DECODED = 7, 32
CONTEXTS = [1024, 2048, 4096, 8192]  # tokens, of the memory table
SWITCHES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "each chunk again": {"checkpoint": "chunk"},
    "groups again": {"checkpoint": "group"},
    "groups again, segments": {"checkpoint": "group", "segment": 512},
}


def model_of(reads: bool, window: int | None = WINDOW, **switches: Any) -> Any:
    """TTT-E2E, or the same blocks without its level."""
    from nested.levels import Level
    from nested.signature import build

    level = Level("reading", ("*.prime.mlp.*",), CHUNK, "token", gather="mean", eta=1.0, clip_norm=1.0)
    mixer = {"_target_": "nested.memory.window_attention.WindowAttention", "window": window}
    return build(
        {"_target_": "nested.models.language.LanguageModel", "mixer": mixer, "width": WIDTH, "depth": BLOCKS,
         "heads": 4, "hidden": 2 * WIDTH, "prime": int(reads), **switches},
        "model", sample_shape=(1,), n_outputs=256, vocabulary=256, per_position=True,
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
        found[f"{name}_ratio"] = statistics.median(row[-1] / row[0] for row in rows)
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
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_step, args=(*cell, queue))
    process.start()
    switch, tokens = cell
    peak, seconds = queue.get()
    process.join()
    return {"switch": switch, "tokens": tokens, "mib": peak, "seconds": seconds}


def _step(switch: str, tokens: int, queue: Any) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, text = model_of(True, **SWITCHES[switch]), torch.randint(256, (1, tokens + 1))
    few = text[:, : 2 * CHUNK + 1]
    model.nll(few[:, :-1], few[:, 1:]).mean().backward()  # libraries are loaded, gradients are there
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    model.nll(text[:, :-1], text[:, 1:]).mean().backward()
    seconds = time.perf_counter() - begun
    queue.put(((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, seconds))


def said_flat(row: dict[str, Any]) -> str:
    shown = [f"{name} x {row[f'{name}_ratio']:.2f} ({1e3 * row[name][0]:.2f} to {1e3 * row[name][-1]:.2f} ms a token)"
             for name in ("prefill", "decode")]  # fmt: skip
    return f"{row['arm']}, {row['windows'][0]} to {row['windows'][-1]} windows: {', '.join(shown)}"


def said_memory(row: dict[str, Any]) -> str:
    return f"{row['tokens']} tokens, {row['switch']}: {row['mib']:.0f} MiB, {row['seconds']:.1f} s"


def main() -> None:
    arms = [(arm,) for arm in ("TTT-E2E", "sliding window", "full attention")]
    compute(OUT, arms, flat, ("arm",), said_flat)
    cells = [(switch, tokens) for tokens in CONTEXTS for switch in SWITCHES]
    compute(OUT.with_stem("ttt_e2e_memory"), cells, memory, ("switch", "tokens"), said_memory)


if __name__ == "__main__":
    main()
