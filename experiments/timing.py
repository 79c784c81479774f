"""What the pages of measured kernels have in common: errors, clocks, rounds, rows with their ratios, peaks of chips."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

PEAKS = {"H200": (4.8e12, 989e12), "H100": (3.35e12, 989e12)}  # bytes and dense bfloat16 operations a second, as stated


def apart(found: Iterable[Tensor], exact: Iterable[Tensor]) -> float:
    """The largest distance of any tensor from the exact one, relative to the norm of that; NaN where one has a NaN."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(found, exact, strict=True)]
    return float(torch.stack([(a - b).norm() / b.norm().clamp_min(1e-30) for a, b in pairs]).max())


def checked(errors: Mapping[str, Callable[[], float]], ours: str, allowed: float) -> tuple[dict[str, float], list[str]]:
    """Errors of the forms that are right, and what is said of the others; what any but `ours` raises is said, too."""
    right, said = {}, []
    for name, error in errors.items():
        try:
            right[name] = error()
        except Exception as raised:
            if name == ours:
                raise
            said.append(f"Not timed, {name} raised {type(raised).__name__}: {' '.join(str(raised).split())[:200]}")
    said += [f"Not timed, {name} is wrong by {error:.1e}." for name, error in right.items() if not error <= allowed]
    return {name: error for name, error in right.items() if error <= allowed}, said


def compiled(form: Callable[..., Any]) -> Callable[..., Any]:
    """For each shape by itself, and never eager without a word: what was compiled before is forgotten.

    torch keeps 8 compiled forms of one piece of code and runs it as it is from the ninth on; forms share their code.
    """
    torch._dynamo.reset()
    return torch.compile(form, fullgraph=True, dynamic=False)


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


def head(ours: str) -> list[str]:
    """Of the columns that `rows` fills."""
    names = ["form", "passes", "ms", f"its time / {ours}", "TFLOP/s", "GB/s", "of the roofline", "error"]
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def rows(
    passes: str,
    times: Mapping[str, list[float]],
    errors: Mapping[str, float],
    ours: str,
    operations: float,
    moved: float,
    device: str,
) -> list[str]:
    """A line for each form; operations and bytes of 0 are not counted. Without `ours` no form is compared."""
    lines = []
    for name, of_form in times.items():
        ms = statistics.median(of_form)
        beside = ratio(of_form, times[ours]) if ours in times and name != ours else "1" if name == ours else ""
        cells = [name, passes, f"{ms:.3g}", beside, f"{operations / ms / 1e9:.3g}" if operations else ""]
        cells += [f"{moved / ms / 1e6:.3g}", roofline(ms, operations, moved, device)] if moved else ["", ""]
        lines.append(f"| {' | '.join([*cells, f'{errors[name]:.1e}'])} |")
    return lines


def ratio(time: list[float], ours: list[float]) -> str:
    """Of medians, with the middle 95 percent of 2,000 resamplings of the rounds."""
    draw = random.Random(0)
    found = []
    for _ in range(2000):
        rounds = draw.choices(range(len(ours)), k=len(ours))
        found.append(statistics.median(time[i] for i in rounds) / statistics.median(ours[i] for i in rounds))
    low, *_, high = statistics.quantiles(found, n=40)
    return f"{statistics.median(time) / statistics.median(ours):.2f} ({low:.2f} to {high:.2f})"


def roofline(ms: float, operations: float, moved: float, device: str) -> str:
    """The share of the time that is left where bytes or operations are as fast as they can be; "" on a processor."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    peaks = [peak for chip, peak in PEAKS.items() if chip in name]
    return f"{max(moved / peaks[0][0], operations / peaks[0][1]) / ms * 1e5:.0f} %" if peaks else ""
