"""Can TTT-E2E say again what it read beyond its window? A needle in a haystack; it is expected that it cannot.

A line `secret = NNNNNN` is put into files that were not trained on, then `secret = ` comes again after so many bytes.
Measured are the bits that the six digits then cost, minus their cost where another number had stood in the line: what
having read the needle saves, paired over 64 haystacks. Within the window attention can copy; beyond it what was
learned can. The paper's own retrieval beyond the window is nil (arXiv 2512.23675, on S-NIAH).

Budget: fifteen minutes of one core (it trains the end-to-end model of ttt_e2e.py, if none is kept).
Numbers: reports/ttt_e2e_needle.json.
Run: .venv/bin/python experiments/ttt_e2e_needle.py [--data DIR]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from cells import put, read
from ttt_e2e import JUDGED, LENGTH, WINDOW, end_to_end, placed, texts

OUT = Path("reports/ttt_e2e_needle.json")
DISTANCES = [WINDOW // 2, WINDOW, 2 * WINDOW, 4 * WINDOW, 7 * WINDOW]  # bytes from the needle's end to its question
DIGITS = 6


def haystacks(judged: Any, numbers: Any, asked: Any, distance: int) -> Any:
    """Text with `secret = number` at a distance before `secret = asked`, which ends it: (64, T)."""
    import torch

    hay = placed(judged, 1)[:, :LENGTH]
    question = lines("\nsecret = ", asked)
    needle = lines("\nsecret = ", numbers)
    end = LENGTH - question.shape[1]
    start = end - distance
    text = hay.clone()
    text[:, end:] = question
    text[:, start - needle.shape[1] : start] = needle
    return torch.cat([hay[:, :1], text], 1)  # the first byte has no label


def lines(name: str, numbers: Any) -> Any:
    import torch

    return torch.tensor([list(f"{name}{n:0{DIGITS}d}".encode()) for n in numbers])


def saved(model: Any, judged: Any, distance: int, frozen: bool) -> dict[str, Any]:
    """Bits that having read the number saves on its digits, each haystack paired with one of another number."""
    import torch

    draw = np.random.default_rng(0)
    told, other = draw.integers(10**DIGITS, size=(2, JUDGED[1]))
    costs = []
    with torch.no_grad():
        for numbers in (told, other):
            text = haystacks(judged, numbers, told, distance)
            costs.append(model.nll(text[:, :-1], text[:, 1:], frozen=frozen)[:, -DIGITS:].sum(1) / math.log(2))
    from nested.metrics import paired

    mean, half, p = paired((costs[1] - costs[0]).double().numpy())
    return {"saved_bits": mean, "ci95": half, "p": p, "cost_bits": float(costs[1].mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a directory of texts; the standard library without it")
    data = parser.parse_args().data
    model, judged, rows = end_to_end(data), texts(data)[1], read(OUT)
    for distance in DISTANCES:
        for frozen in (False, True):
            row = {"distance": distance, "frozen": frozen, **saved(model, judged, distance, frozen)}
            rows = [r for r in rows if (r["distance"], r["frozen"]) != (distance, frozen)] + [row]
            put(OUT, rows, [row])
            how = "frozen" if frozen else "reading"
            print(
                f"{distance} bytes, {how}: {row['saved_bits']:.2f} +- {row['ci95']:.2f} of {row['cost_bits']:.1f} bits"
            )


if __name__ == "__main__":
    main()
