"""The published 125M shape on a GPU: seconds and peak memory of a training step and of prefill, at 8K to 32K tokens.

TTT-E2E beside full attention, a sliding window, Mamba-2 and Gated DeltaNet, on random tokens (time does not depend on
what they say). Before anything is timed it is checked, on small shapes on the same device. In float64 the outer
gradient is the second-order one, at rate 0 TTT-E2E is the sliding window, and a reading in pieces is the reading at
once. With the kernels and the precision that are timed, the outer gradient is that of float64.

An arm that runs out of memory has no number, and says so. Rows are kept one by one in reports/ttt_e2e_gpu.json.
Run: .venv/bin/python experiments/ttt_e2e_gpu.py [--tiny] [--device cuda]   (--tiny: the script itself, on any machine)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cells import compute

OUT = Path("reports/ttt_e2e_gpu.json")
VOCABULARY = 128_256
LENGTHS = [8192, 16_384, 32_768]
MEMORY = "nested.memory."
WINDOW = {"_target_": f"{MEMORY}window_attention.WindowAttention", "window": 8192}
ARMS: dict[str, dict[str, Any]] = {
    "TTT-E2E": {"mixer": WINDOW, "hidden": 1664, "prime": 3, "checkpoint": "group", "segment": 8192},
    "full": {"mixer": {**WINDOW, "window": None}, "hidden": 2048},
    "sliding": {"mixer": WINDOW, "hidden": 2048, "segment": 8192},
    "Mamba-2": {"mixer": {"_target_": f"{MEMORY}mamba2.Mamba2", "key_size": 128}, "hidden": 1472},
    "Gated DeltaNet": {"mixer": {"_target_": f"{MEMORY}gated_delta_net.GatedDeltaNet"}, "hidden": 1040},
}
SHAPE = {"width": 768, "depth": 12, "heads": 12}
TINY = {"width": 32, "depth": 4, "heads": 2, "hidden": 32}
REPEATS = 3
OFF = {"float32": 1e-3, "bfloat16": 0.5}  # relative error of the outer gradient, at most; first order's is .99


def model_of(arm: str, length: int, tiny: bool) -> Any:
    """The arm's model; small where `tiny`, with a window and chunks of a sixteenth of the length."""
    from nested.levels import Level
    from nested.signature import build

    given, vocabulary, chunk = {**SHAPE, **ARMS[arm]}, VOCABULARY, 1024
    if tiny:
        given, vocabulary, chunk = {**given, **TINY}, 64, length // 16
        given["mixer"] = {k: length // 4 if k == "window" and v else v for k, v in given["mixer"].items()}
    level = Level("reading", ("*.prime.mlp.*",), chunk, "token", gather="mean", eta=1.0, clip_norm=1.0)
    levels = (level,) if "prime" in given else ()
    of_text = {"sample_shape": (length,), "n_outputs": vocabulary, "vocabulary": vocabulary, "per_position": True}
    return build({"_target_": "nested.models.language.LanguageModel", **given}, "model", token_levels=levels, **of_text)


def check(device: str) -> None:
    """What must hold on this device before a time means anything. Raises AssertionError, UserError."""
    import torch

    from nested.inner import initial_state, read
    from nested.second_order import check_outer_gradient, read_losses

    model, tokens = small(64, device)
    with torch.no_grad():  # its updates shall move it far
        for p in model.parameters():
            p *= 10 if p.ndim > 1 else 1
    x, y = tokens[:, :-1], tokens[:, 1:]
    as_timed = torch.autograd.grad(model.nll(x, y).mean(), list(model.parameters()))
    model.checkpoint, model.segment = "none", None
    for found, wanted in zip(as_timed, torch.autograd.grad(model.nll(x, y).mean(), list(model.parameters()))):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    check_outer_gradient(read_losses(model, model.levels, "full"), model, model.levels, tokens)
    whole, _ = read(model, model.levels, initial_state(model, model.levels, 2), tokens)
    first, state = read(model, model.levels, initial_state(model, model.levels, 2), tokens[:, :23])
    second, _ = read(model, model.levels, state, tokens[:, 23:])
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-8, atol=1e-8)
    model.levels = tuple(replace(level, eta=0.0) for level in model.levels)
    at_rate_0 = model.nll(x, y)
    model.levels = ()
    torch.testing.assert_close(at_rate_0, model.nll(x, y), rtol=1e-10, atol=1e-10)
    print("checked: second-order outer gradient, in pieces, rate 0 is the sliding window", flush=True)


def check_kernels(device: str) -> None:
    """That the kernels which are timed give the outer gradient of float64, by chunks long enough to take them.

    Raises AssertionError.
    """
    import torch
    from nested_kernels.backend import using

    model, tokens = small(512, device)
    parameters = list(model.parameters())

    def gradient() -> Any:
        found = torch.autograd.grad(model.nll(tokens[:, :-1], tokens[:, 1:]).mean(), parameters)
        return torch.cat([g.double().flatten() for g in found])

    with using("chunked"):
        wanted = gradient()
    model.float()
    for name, most in OFF.items():
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=name == "bfloat16"):
            off = float((gradient() - wanted).norm() / wanted.norm())
        assert off <= most, f"the outer gradient in {name} is {off:.2g} of its norm away from float64's; at most {most}"
        print(f"checked: outer gradient in {name}, {off:.1e} of its norm away from float64's", flush=True)


def small(length: int, device: str) -> tuple[Any, Any]:
    """A small TTT-E2E in float64, and two sequences."""
    import torch

    torch.manual_seed(0)
    model = model_of("TTT-E2E", length, tiny=True).to(device).double()
    return model, torch.randint(64, (2, length + 1), device=device)


def one(cell: tuple[str, int], device: str, tiny: bool) -> dict[str, Any]:
    """Seconds and peak bytes of a training step and of prefill, one sequence at a time."""
    import torch

    arm, length = cell
    torch.manual_seed(0)
    model = model_of(arm, length, tiny).to(device)
    tokens = torch.randint(model.embedding.num_embeddings, (1, length + 1), device=device)
    x, y = tokens[:, :-1], tokens[:, 1:]

    def step() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=not tiny):
            loss = model.nll(x, y).mean()
        loss.backward()
        model.zero_grad()

    @torch.no_grad()
    def prefill() -> None:
        from nested.reading import prefill as read_in

        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=not tiny):
            read_in(model, x)

    row = {"arm": arm, "length": length, "parameters": sum(p.numel() for p in model.parameters())}
    for name, act in (("train", step), ("prefill", prefill)):
        try:
            row |= {f"{name}_{k}": v for k, v in measured(act, device).items()}
        except torch.OutOfMemoryError as error:
            row[f"{name}_problem"] = str(error).splitlines()[0]
    return {**row, **machine(device)}


def measured(act: Callable[[], None], device: str) -> dict[str, Any]:
    """Median seconds after one call that is not counted, and the peak of what the device held."""
    import torch

    on_gpu, seconds = device.startswith("cuda"), []
    act()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(REPEATS):
        begun = time.perf_counter()
        act()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return {"seconds": sorted(seconds)[REPEATS // 2], "peak": torch.cuda.max_memory_allocated() if on_gpu else None}


def machine(device: str) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    return {"device": name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}


def said(row: dict[str, Any]) -> str:
    parts = []
    for name in ("train", "prefill"):
        if f"{name}_problem" in row:
            parts.append(f"{name} {row[f'{name}_problem']}")
            continue
        peak = row[f"{name}_peak"]
        held = "" if peak is None else f", {peak / 2**30:.1f} GiB"
        parts.append(f"{name} {1e3 * row[f'{name}_seconds'] / row['length'] * 1000:.2f} ms per 1,000 tokens{held}")
    return f"{row['arm']} {row['length']}: {'; '.join(parts)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, kept in a file of their own")
    asked = parser.parse_args()
    check(asked.device)
    check_kernels(asked.device)
    file = OUT.with_stem("ttt_e2e_gpu_tiny") if asked.tiny else OUT
    lengths = [256, 512] if asked.tiny else LENGTHS
    cells = [(arm, length) for arm in ARMS for length in lengths]
    compute(file, cells, partial(one, device=asked.device, tiny=asked.tiny), ("arm", "length"), said)


if __name__ == "__main__":
    main()
