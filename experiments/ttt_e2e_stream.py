"""One state reads ten million bytes: does TTT-E2E stay finite, in constant memory, and does it still gain at the end?

The end-to-end model of ttt_e2e.py (chunks of 16 bytes, inner rate 1, trained on sequences of 512 bytes of the standard
library) reads the Python sources of the installed torch, which it was not trained on, file after file (files of your
own: --text DIR), with one state that is never reset: 625,000 updates, 20,000 times as long as what it was trained on.
Beside it the same weights with updates off. Every quarter of a million bytes: bits per byte of both, how far the fast
weights are from their initial state, and the resident memory.

"Still gaining" means: the gain over updates off is larger in the last fifth than in the fifth before.

Budget: an hour of one core; the state is kept every quarter of a million bytes, so that it goes on from there.
Numbers: reports/ttt_e2e_stream.json. Figure: reports/ttt_e2e_stream.png.
Run: .venv/bin/python experiments/ttt_e2e_stream.py [--text DIR]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from cells import put, read
from ttt_e2e import KEPT, end_to_end

from nested.report.drawing import MUTED, colour, drawn
from nested.report.inline import save_png

OUT, STATES = Path("reports/ttt_e2e_stream.json"), KEPT / "stream.pt"
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

    from nested.inner import initial_state

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="a folder with Python files; the installed torch without it")
    torch.set_num_threads(1)
    text = source(parser.parse_args().text)
    model = end_to_end(None)
    states = torch.load(STATES, weights_only=False) if STATES.exists() else {}
    rows = read(OUT)[: states["reading"].tick // ROW] if states else []  # a kill may have come between the two
    with torch.no_grad():
        states = states or {way: initial_state(model, model.levels, 1) for way in ("reading", "frozen")}
        for first in range(len(rows) * ROW, BYTES, ROW):
            row = {"bytes": first + ROW, **one(model, states, text[first : first + ROW])}
            rows.append(row)
            torch.save(states, STATES)
            put(OUT, rows, [row])
            print(", ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{v:,} {k}" for k, v in row.items()))
    print(conclusion(rows))
    save_png(figure(rows), OUT.with_suffix(".png"))


def conclusion(rows: list[dict[str, Any]]) -> str:
    gain = np.array([r["frozen"] - r["reading"] for r in rows])
    fifth = len(gain) // 5
    parts = ", ".join(f"{part.mean():.3f}" for part in gain.reshape(5, fifth))
    return (
        f"gain over updates off by fifths of the text: {parts} bits per byte; weights moved by {rows[-1]['moved']:.2f} "
        f"of their norm; resident memory {rows[0]['mib']:.0f} MiB at the first row, {rows[-1]['mib']:.0f} at the last"
    )


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
