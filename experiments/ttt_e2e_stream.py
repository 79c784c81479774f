"""One state reads ten million bytes: does TTT-E2E stay finite, in constant memory, and does it still gain at the end?

The end-to-end model of ttt_e2e.py (chunks of 16 bytes, inner rate 1, trained on sequences of 512 bytes of the standard
library) reads Python sources of the installed torch, which it was not trained on (files of your own: --text DIR), with
one state that is never reset: 625,000 updates, 20,000 times as long as what it was trained on. The files come in the
order of the hashes of their paths, so that no package's are together and late ones are no harder than early ones.
Beside it the same weights with updates off. Every quarter of a million bytes: bits per byte of both; of a probe, the
same 64 thousand bytes of files that are never part of the stream, read on by a copy of the state, and once by a fresh
one; how far the fast weights are from their initial state; and the resident memory.

"Still falling at the end": the trend of the loss over the last half, by least squares over 20 rows, is below zero with
95 percent. It is shown for the text and for the probe, which is the same at every row, and so is the trend of the gain
over updates off.

Expected, written before it was run: in the first million bytes the probe falls by .02 bits per byte or more; over the
last half no trend is beyond +-.03 bits per byte per million bytes, and none is surely below zero: so small a state is
full long before.

Budget: an hour and a quarter of one core. Rows and states are kept together every quarter of a million bytes: it goes
on from there.
Numbers: reports/ttt_e2e_stream.json. Figure: reports/ttt_e2e_stream.png.
Run: .venv/bin/python experiments/ttt_e2e_stream.py [--text DIR]
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from ttt_e2e import KEPT, digest, judged_model

from nested.report.drawing import MUTED, colour, drawn
from nested.report.inline import save_png
from nested.rundir import write_atomic, write_json

if TYPE_CHECKING:
    from nested.inner import Mode

OUT = Path("reports/ttt_e2e_stream.json")
BYTES, ROW, PROBE, PIECE = 10_000_000, 250_000, 65_536, 1024


def source(root: Path | None) -> tuple[Any, Any]:
    """Ten million bytes and one of the Python files below a folder, and the probe: the first ones of the files left."""
    import torch

    from nested.sequences.text import mixed

    root = root or Path(torch.__file__).parent
    files = iter(mixed(root.rglob("*.py"), root))
    return beginning(files, BYTES + 1), beginning(files, PROBE)


def beginning(files: Iterator[Path], n: int) -> Any:
    """The first n bytes of files, taken from the iterator."""
    from nested.sequences.text import as_bytes

    found = bytearray()
    for file in files:
        found += file.read_bytes()
        if len(found) >= n:
            return as_bytes(bytes(found[:n]))
    raise SystemExit(f"{len(found):,} bytes of Python where {n:,} are needed, of {BYTES + PROBE:,} in all")


def one(model: Any, states: dict[str, Any], text: Any, probe: Any) -> dict[str, Any]:
    """Read so many bytes with and without updates; the states are replaced, that of the probe is not kept."""
    row = {}
    row["frozen"], states["frozen"] = bits_per_byte(model, states["frozen"], text, "off")
    row["reading"], states["reading"] = bits_per_byte(model, states["reading"], text, "full")
    row["probe"], _ = bits_per_byte(model, states["reading"], probe, "full")
    return {**row, "moved": moved(model, states["reading"]), "mib": resident()}


def bits_per_byte(model: Any, state: Any, text: Any, mode: Mode) -> tuple[float, Any]:
    """What the text costs, read on from a state, and the state after it."""
    import torch

    from nested.inner import read

    costs = []
    for piece in text.split(PIECE):
        nll, state = read(model, model.levels, state, piece.unsqueeze(0).long(), mode)
        costs.append(nll.sum())
    return float(torch.stack(costs).sum()) / math.log(2) / len(text), state


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
    text, probe = source(parser.parse_args().text)
    model = judged_model("end-to-end", None)
    file = KEPT / f"stream-{digest(text, probe, *(p.detach() for p in model.parameters()))}.pt"
    with torch.serialization.safe_globals([FastState]):
        rows, states = torch.load(file) if file.exists() else ([], {})
    with torch.no_grad():
        start = initial_state(model, model.levels, 1)
        fresh, _ = bits_per_byte(model, start, probe, "full")
        states = states or {"reading": start, "frozen": start}
        for first in range(len(rows) * ROW, BYTES, ROW):
            row = {"bytes": first + ROW, **one(model, states, text[first : first + ROW], probe)}
            rows.append(row)
            held = io.BytesIO()
            torch.save((rows, states), held)
            write_atomic(file, held.getvalue())
            print(", ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{v:,} {k}" for k, v in row.items()))
    write_json(OUT, {"fresh": fresh, "rows": rows})
    print(conclusion(rows, fresh))
    save_png(figure(rows, fresh), OUT.with_suffix(".png"))


def conclusion(rows: list[dict[str, Any]], fresh: float) -> str:
    said = [f"fifths of the {BYTES:,} bytes; trend over the last half; bits per byte, and per million bytes"]
    for name, values in curves(rows).items():
        fifths = ", ".join(f"{part.mean():.3f}" for part in np.array_split(values, 5))
        slope, half = trend(values[len(rows) // 2 :])
        said.append(f"{name}: {fifths}; {slope:+.4f} +- {half:.4f}")
    mib = [row["mib"] for row in rows]
    moved = f"a fresh state reads the probe at {fresh:.3f}; weights moved by {rows[-1]['moved']:.2f} of their norm"
    return "\n".join([*said, f"{moved}; resident memory {mib[0]:.0f} MiB at the first row, {max(mib):.0f} at most"])


def curves(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Bits per byte by row: of the text, of the same with updates off, of the probe, and what the updates save."""
    found = {name: np.array([row[name] for row in rows]) for name in ("reading", "frozen", "probe")}
    return {**found, "gain": found["frozen"] - found["reading"]}


def trend(values: Any) -> tuple[float, float]:
    """Slope per million bytes by least squares over rows, and half its 95 percent interval."""
    from scipy.special import stdtrit

    x = ROW / 1e6 * (np.arange(len(values)) - (len(values) - 1) / 2)
    slope, free = (x * values).sum() / (x**2).sum(), len(values) - 2
    left = values - values.mean() - slope * x
    return float(slope), float(stdtrit(free, 0.975) * math.sqrt((left**2).sum() / free / (x**2).sum()))


@drawn
def figure(rows: list[dict[str, Any]], fresh: float) -> Any:
    """Bits per byte with and without updates and of the probe, the gain, and the distance of the weights."""
    from matplotlib.figure import Figure

    shown = Figure(figsize=(11, 3.6), layout="constrained")
    bits, saved, far = shown.subplots(1, 3)
    x, found = [r["bytes"] / 1e6 for r in rows], curves(rows)
    labels = {"reading": "updates on", "frozen": "updates off", "probe": "the same 64 kB at every row, updates on"}
    for slot, (name, label) in enumerate(labels.items()):
        bits.plot(x, found[name], color=colour(slot), label=label)
    bits.axhline(fresh, color=MUTED, linewidth=0.8, label="the same 64 kB by a fresh state")
    bits.legend(fontsize="x-small", loc="upper right")
    bits.set_ylim(0, 1.5 * max(found["frozen"]))  # room for the legend
    bits.set_ylabel("bits per byte")
    saved.plot(x, found["gain"], color=colour(0))
    saved.axhline(0, color=MUTED, linewidth=0.8)
    saved.set_ylabel("gain by updates, bits per byte")
    far.plot(x, [r["moved"] for r in rows], color=colour(0))
    far.set_ylabel("distance from the initial state, relative")
    for axes in (bits, saved, far):
        axes.set_xlabel("million bytes read")
    return shown


if __name__ == "__main__":
    main()
