"""What the pages of measured kernels have in common: clocks, rounds, ratios with intervals, peaks of the hardware."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch

PEAKS = {"H200": (4.8e12, 989e12), "H100": (3.35e12, 989e12)}  # bytes and dense bfloat16 operations a second, as stated


def clock(device: str) -> float:
    """Milliseconds: of the one thread, so that a busy machine counts less, or of the device once it is done."""
    if device == "cpu":
        return 1e3 * time.process_time()
    torch.cuda.synchronize()
    return 1e3 * time.perf_counter()


def measured(calls: Mapping[str, Callable[[], object]], device: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, in a new random order, after two rounds that are thrown away."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for r in range(rounds + 2):
        for name in random.Random(r).sample(list(calls), len(calls)):
            begun = clock(device)
            calls[name]()
            if r > 1:
                times[name].append(clock(device) - begun)
    return times


def ratio(slow: list[float], fast: list[float]) -> str:
    """Of medians, with the middle 95 percent of 2,000 resamplings of the rounds."""
    draw = random.Random(0)
    found = []
    for _ in range(2000):
        rounds = draw.choices(range(len(fast)), k=len(fast))
        found.append(statistics.median(slow[i] for i in rounds) / statistics.median(fast[i] for i in rounds))
    low, *_, high = statistics.quantiles(found, n=40)
    return f"{statistics.median(slow) / statistics.median(fast):.2f} ({low:.2f} to {high:.2f})"


def roofline(ms: float, operations: float, moved: float, device: str) -> str:
    """The share of the time that is left where bytes or operations are as fast as they can be; "" on a processor."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    peaks = [peak for chip, peak in PEAKS.items() if chip in name]
    return f"{max(moved / peaks[0][0], operations / peaks[0][1]) / ms * 1e5:.0f} %" if peaks else ""
