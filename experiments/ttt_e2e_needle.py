"""Can TTT-E2E say again what it read beyond its window? A needle in a haystack; it is expected that it cannot.

A line `secret = NNNNNN` is put into files that were not trained on, then `secret = ` comes again after so many bytes.
Measured are the bits that the six digits then cost, minus their cost where another number had stood in the line: what
having read the needle saves, paired over 256 haystacks. Where that other number has the same digits in another order,
it is what knowing their order saves, and not merely which digits there were. Within the window attention can copy;
four windows in a row reach 252 bytes; beyond that only what was learned can answer. So what counts there is what
reading with updates saves more than reading frozen, paired. The full attention of the same study, which sees all, is
the positive control, after as many steps as end-to-end and (with a +) after as many seconds.

Expected: nothing beyond 252 bytes; the paper's own retrieval beyond the window is nil (arXiv 2512.23675, on S-NIAH).

Budget: five minutes of one core after ttt_e2e.py, whose models it reads with (it trains them where they are not kept).
Numbers: reports/ttt_e2e_needle.json.
Run: .venv/bin/python experiments/ttt_e2e_needle.py [--data DIR]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from cells import put
from ttt_e2e import JUDGED, LENGTH, WINDOW, judged_model, placed, texts

OUT = Path("reports/ttt_e2e_needle.json")
DISTANCES = [WINDOW // 2, WINDOW, 2 * WINDOW, 4 * WINDOW, 7 * WINDOW]  # bytes from the needle's end to its question
DIGITS = 6
CONTROLS = ["full", "full+"]


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


def saved(model: Any, judged: Any, distance: int, frozen: bool, order: bool = False) -> Any:
    """Bits that having read the number saves on its digits, each haystack paired with one of another number: (256,).

    `order`: the other number has the same digits, in an order drawn until it is another one.
    """
    import torch

    draw = np.random.default_rng(0)
    told, other = draw.integers(10**DIGITS, size=(2, JUDGED[1]))
    told = np.where(told % 111_111, told, 123_456)  # one digit alone has no other order
    other = np.array([reordered(n, draw) for n in told]) if order else other
    costs = []
    with torch.no_grad():
        for numbers in (told, other):
            text = haystacks(judged, numbers, told, distance)
            found = [model.nll(t[:, :-1], t[:, 1:], frozen=frozen)[:, -DIGITS:].sum(1) for t in text.split(16)]
            costs.append(torch.cat(found) / math.log(2))
    return (costs[1] - costs[0]).double().numpy()


def reordered(number: int, draw: np.random.Generator) -> int:
    digits = list(f"{number:0{DIGITS}d}")
    while (other := int("".join(draw.permutation(digits)))) == number:
        pass
    return other


def main() -> None:
    from nested.metrics import paired

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a directory of texts; the standard library without it")
    data = parser.parse_args().data
    judged, rows = texts(data)[1], []
    ours, *controls = (judged_model(arm, data) for arm in ("end-to-end", *CONTROLS))
    for distance in DISTANCES:
        frozen, reading = (saved(ours, judged, distance, frozen=way) for way in (True, False))
        seen = {arm: saved(full, judged, distance, frozen=True) for arm, full in zip(CONTROLS, controls)}
        ways = {**seen, "frozen": frozen, "reading": reading, "reading minus frozen": reading - frozen}
        ways["reading, order alone"] = saved(ours, judged, distance, frozen=False, order=True)
        for way, bits in ways.items():
            mean, half, p = paired(bits)
            rows.append({"distance": distance, "way": way, "saved_bits": mean, "ci95": half, "p": p})
            put(OUT, rows, rows[-1:])
            print(f"{distance} bytes, {way}: {mean:+.2f} +- {half:.2f} of {DIGITS * math.log2(10):.1f} bits")


if __name__ == "__main__":
    main()
