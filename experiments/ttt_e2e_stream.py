"""One state reads ten million bytes: does TTT-E2E stay finite, in constant memory, and does it still gain at the end?

The end-to-end model of ttt_e2e.py (chunks of 16 bytes, inner rate 1, trained on sequences of 512 bytes of the standard
library) reads the Python sources of the installed torch, which it was not trained on, file after file (files of your
own: --text DIR), with one state that is never reset: 625,000 updates, 20,000 times as long as what it was trained on.
Beside it the same weights with updates off. Every quarter of a million bytes: bits per byte of both, how far the fast
weights are from their initial state, and the resident memory.

"Still falling at the end" is judged on the gain over updates off, which does not depend on how hard the text is: its
trend over the last half, by least squares over 20 rows, is above zero with 95 percent. The trend of the loss itself is
shown beside it.

Budget: an hour of one core. Rows and states are kept together every quarter of a million bytes: it goes on from there.
Numbers: reports/ttt_e2e_stream.json. Figure: reports/ttt_e2e_stream.png.
Run: .venv/bin/python experiments/ttt_e2e_stream.py [--text DIR]
"""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from cells import put
from ttt_e2e import KEPT, digest, judged_model

from nested.report.drawing import MUTED, colour, drawn
from nested.report.inline import save_png
from nested.rundir import write_atomic

OUT = Path("reports/ttt_e2e_stream.json")
BYTES, ROW, PIECE = 10_000_000, 250_000, 1024


def source(root: Path | None) -> Any:
    """The first ten million bytes of the Python files below a folder, in the order of their paths."""
    import torch

    from nested.sequences.text import as_bytes

    root = root or Path(torch.__file__).parent
    found = b"".join(file.read_bytes() for file in sorted(root.rglob("*.py")))
    if len(found) <= BYTES:
        raise SystemExit(f"{root} holds {len(found):,} bytes of Python; more than {BYTES:,} are needed")
    return as_bytes(found[: BYTES + 1])


def one(model: Any, states: dict[str, Any], text: Any) -> dict[str, Any]:
    """Read so many bytes with and without updates; the states are replaced."""
    import torch

    from nested.inner import Mode
    from nested.inner import read as read_on

    bits = {}
    modes: dict[str, Mode] = {"reading": "full", "frozen": "off"}
    for way, mode in modes.items():
        costs = []
        for piece in text.split(PIECE):
            nll, states[way] = read_on(model, model.levels, states[way], piece.unsqueeze(0).long(), mode)
            costs.append(nll.sum())
        bits[way] = float(torch.stack(costs).sum()) / math.log(2) / len(text)
    return {**bits, "moved": moved(model, states["reading"]), "mib": resident()}


def moved(model: Any, state: Any) -> float:
    """Norm of what reading has added to the fast weights, relative to that of their initial state."""
    start = dict(model.named_parameters())
    added = sum(float((w[0] - start[name]).square().sum()) for name, w in state.fast.items())
    return math.sqrt(added / sum(float(start[name].square().sum()) for name in state.fast))


def resident() -> float:
    """Memory of this process, MiB."""
    return psutil.Process().memory_info().rss / 2**20


def main() -> None:
    import torch

    from nested.inner import FastState, initial_state

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="a folder with Python files; the installed torch without it")
    torch.set_num_threads(1)
    text = source(parser.parse_args().text)
    model = judged_model("end-to-end", None)
    file = KEPT / f"stream-{digest(text, *(p.detach() for p in model.parameters()))}.pt"
    with torch.serialization.safe_globals([FastState]):
        rows, states = torch.load(file) if file.exists() else ([], {})
    with torch.no_grad():
        states = states or {way: initial_state(model, model.levels, 1) for way in ("reading", "frozen")}
        for first in range(len(rows) * ROW, BYTES, ROW):
            row = {"bytes": first + ROW, **one(model, states, text[first : first + ROW])}
            rows.append(row)
            held = io.BytesIO()
            torch.save((rows, states), held)
            write_atomic(file, held.getvalue())
            put(OUT, rows, [row])
            print(", ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{v:,} {k}" for k, v in row.items()))
    print(conclusion(rows))
    save_png(figure(rows), OUT.with_suffix(".png"))


def conclusion(rows: list[dict[str, Any]]) -> str:
    gain = np.array([r["frozen"] - r["reading"] for r in rows])
    loss = np.array([r["reading"] for r in rows])
    fifths = ", ".join(f"{part.mean():.3f}" for part in np.array_split(gain, 5))
    (rise, half), (fall, around) = (trend(values[len(rows) // 2 :]) for values in (gain, loss))
    return (
        f"gain over updates off by fifths of the text: {fifths} bits per byte; over the last half it changes by "
        f"{rise:+.4f} +- {half:.4f} per million bytes, the loss by {fall:+.4f} +- {around:.4f}; weights moved by "
        f"{rows[-1]['moved']:.2f} of their norm; resident memory {rows[0]['mib']:.0f} MiB at the first row, "
        f"{rows[-1]['mib']:.0f} at the last"
    )


def trend(values: Any) -> tuple[float, float]:
    """Slope per million bytes by least squares over rows, and half its 95 percent interval."""
    from scipy.special import stdtrit

    x = ROW / 1e6 * (np.arange(len(values)) - (len(values) - 1) / 2)
    slope, free = (x * values).sum() / (x**2).sum(), len(values) - 2
    left = values - values.mean() - slope * x
    return float(slope), float(stdtrit(free, 0.975) * math.sqrt((left**2).sum() / free / (x**2).sum()))


@drawn
def figure(rows: list[dict[str, Any]]) -> Any:
    """Bits per byte with and without updates, the gain, and the distance of the weights, against bytes read."""
    from matplotlib.figure import Figure

    shown = Figure(figsize=(11, 3.6), layout="constrained")
    bits, gain, far = shown.subplots(1, 3)
    x = [r["bytes"] / 1e6 for r in rows]
    for slot, way in enumerate(("reading", "frozen")):
        bits.plot(x, [r[way] for r in rows], color=colour(slot), label=f"{way}: updates {'off' if slot else 'on'}")
    bits.legend()
    bits.set_ylabel("bits per byte")
    gain.plot(x, [r["frozen"] - r["reading"] for r in rows], color=colour(0))
    gain.axhline(0, color=MUTED, linewidth=0.8)
    gain.set_ylabel("gain by updates, bits per byte")
    far.plot(x, [r["moved"] for r in rows], color=colour(0))
    far.set_ylabel("distance from the initial state, relative")
    for axes in (bits, gain, far):
        axes.set_xlabel("million bytes read")
    return shown


if __name__ == "__main__":
    main()
