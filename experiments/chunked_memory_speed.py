"""How much faster the chunked delta rule is than the loop over tokens, forward and with its backward pass.

T = 1024 tokens, heads of D = 64, batch 2, 4 heads, float32, one thread, DGD on the l2 objective. Values and gradients
are compared before anything is timed. Rounds are interleaved: in each, every form runs once, in a new random order.
Times are processor time of the one thread, so that a busy machine counts less; what is claimed is the ratio of medians,
at the best chunk, and the ratio of the least times is beside it. Run: python experiments/chunked_memory_speed.py
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from nested_kernels import delta_rule
from torch import Tensor

B, H, T, D = 2, 4, 1024, 64
CHUNKS = (16, 32, 64, 128)
ROUNDS = 15
TARGETS = {"forward": 10.0, "forward and backward": 15.0}


def operands() -> list[Tensor]:
    """Unit keys and queries, eta in [0, alpha], alpha in [0.9, 1], a memory."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, H, T, D, generator=g) for _ in range(3))
    alpha = 1 - 0.1 * torch.rand(B, H, T, generator=g)
    eta = alpha * torch.rand(B, H, T, generator=g)
    memory = torch.randn(B, H, D, D, generator=g) / D**0.5
    return [x.requires_grad_() for x in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, eta, alpha, memory)]


def call(x: list[Tensor], chunk: int | None, backward: bool) -> list[Tensor]:
    """y and the last memory, and with `backward` the gradients of a fixed loss; chunk None is the token loop."""
    q, k, v, eta, alpha, memory = x
    backend = "reference" if chunk is None else "chunked"
    with torch.set_grad_enabled(backward):
        y, state = delta_rule(q, k, v, eta, alpha, memory, chunk=chunk, backend=backend)
    grads = torch.autograd.grad(y.square().mean() + state.memory.square().mean(), x) if backward else ()
    return [y, state.memory, *grads]


def check(x: list[Tensor]) -> float:
    """The largest relative error of any output or gradient of any chunk length."""
    wide = [t.detach().double().requires_grad_() for t in x]
    exact = call(wide, None, True)
    errors = [
        float((got - e).norm().detach() / e.norm().detach())
        for chunk in CHUNKS
        for got, e in zip(call(x, chunk, True), exact, strict=True)
    ]
    assert max(errors) < 1e-5, f"chunked and token loop differ by {max(errors):.1e}"
    return max(errors)


def measure(x: list[Tensor], backward: bool, rounds: int) -> dict[int | None, list[float]]:
    """Seconds of each form in each round, after one round that is thrown away."""
    forms: list[int | None] = [None, *CHUNKS]
    times: dict[int | None, list[float]] = {form: [] for form in forms}
    for r in range(rounds + 1):
        for form in random.Random(r).sample(forms, len(forms)):
            begun = time.process_time()
            call(x, form, backward)
            if r:
                times[form].append(time.process_time() - begun)
    return times


def summary(times: dict[int | None, list[float]], target: float) -> dict:
    middle = {form: 1e3 * statistics.median(seconds) for form, seconds in times.items()}
    least = {form: 1e3 * min(seconds) for form, seconds in times.items()}
    best = min(CHUNKS, key=lambda chunk: middle[chunk])
    return {
        "loop_ms": middle[None],
        "loop_least_ms": least[None],
        "chunked_ms": {chunk: middle[chunk] for chunk in CHUNKS},
        "chunked_least_ms": {chunk: least[chunk] for chunk in CHUNKS},
        "best_chunk": best,
        "ratio": middle[None] / middle[best],
        "ratio_of_least": least[None] / min(least[chunk] for chunk in CHUNKS),
        "target": target,
        "met": middle[None] / middle[best] >= target,
    }


def hardware() -> str:
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def main(rounds: int = ROUNDS) -> dict:
    torch.set_num_threads(1)
    x = operands()
    report = {
        "what": f"delta rule, T={T}, D={D}, B={B}, H={H}, float32, one thread, {rounds} interleaved rounds",
        "hardware": hardware(),
        "load_average": os.getloadavg()[0],
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "largest_relative_error": check(x),
    }
    for name, target in TARGETS.items():
        report[name] = row = summary(measure(x, name != "forward", rounds), target)
        by_chunk = ", ".join(f"{chunk}: {ms:.1f}" for chunk, ms in row["chunked_ms"].items())
        print(
            f"{name:20} loop {row['loop_ms']:.1f} ms, chunked {by_chunk}; best chunk {row['best_chunk']}: "
            f"{row['ratio']:.1f}x, of least times {row['ratio_of_least']:.1f}x (target {target:g}x)"
        )
    return report


if __name__ == "__main__":
    found = main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
    Path("reports/chunked_memory_speed.json").write_text(json.dumps(found, indent=1) + "\n")
