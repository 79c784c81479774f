"""The table of a comparison for other programs: CSV with every digit, LaTeX for a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import nested
from nested.report.groups import Group, Member
from nested.report.pairs import PAIRED, paired
from nested.report.records import METRICS, mean_of, visible
from nested.report.tables import COSTS, LONG, known_metrics
from nested.report.wording import heading, large, metric, seeds

SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {c: "\\" + c for c in "&%$#_{}"} | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}


def csv_table(groups: Sequence[Group], baselines: Sequence[Member]) -> str:
    """One row for each configuration: means, half widths, costs, and differences from its stream's baseline."""
    rows = [_row(group, baseline, m) for group, baseline in zip(groups, baselines) for m in group.members]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    return out.getvalue()


def _row(group: Group, baseline: Member, member: Member) -> dict[str, Any]:
    run = member.run
    row: dict[str, Any] = {
        "stream": visible(group.title), "configuration": visible(member.label), "status": run.status,
        "runs": " ".join(visible(r.run_id) for r in run.directories), "seeds": " ".join(str(s.seed) for s in run.done),
    }  # fmt: skip
    for name in METRICS:
        row |= {name: run.mean.get(name), f"{name}_ci95": run.ci95.get(name)}
    row |= {name: mean_of(run.cost(name)) for name, *_ in COSTS} | {"parameters": run.parameters}
    row["baseline"] = visible(baseline.label)
    for name in PAIRED:
        pair = paired(run, baseline.run, name) if member is not baseline else None
        row["common_seeds"] = max(row.get("common_seeds", 0), pair.seeds if pair else 0)
        row |= {f"{name}_difference": pair and pair.difference}
        row |= {f"{name}_difference_ci95": pair and pair.half, f"{name}_p": pair and pair.p}
    return row


def latex_table(groups: Sequence[Group]) -> str:
    """A tabular for each stream, its rules from the package booktabs."""
    return "\n".join(line for group in groups for line in _tabular(group)) + "\n"


def _tabular(group: Group) -> Iterator[str]:
    names = known_metrics(group.runs, LONG)
    head = ["configuration", "seeds", *(heading(name, group.measure) for name in names), "FLOPs"]
    yield f"% {visible(group.title)}: mean and 95 percent interval over seeds; nested {nested.__version__}"
    yield rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
    yield from (r"\toprule", " & ".join(head) + r" \\", r"\midrule")
    for member in group.members:
        run = member.run
        values = [_signed(metric(run, name)) for name in names]
        cells = [escaped(member.label), seeds(run), *values, large(mean_of(run.cost("flops")))]
        yield " & ".join(c.replace("–", "--") for c in cells) + r" \\"
    yield from (r"\bottomrule", r"\end{tabular}")


def _signed(text: str) -> str:
    """A number with its interval, as mathematics."""
    return text if text == "–" else f"${text.replace('±', chr(92) + 'pm')}$"


def escaped(text: str) -> str:
    """What a user typed, as text."""
    return "".join(SPECIAL.get(c, c) for c in visible(text))


def as_dict(groups: Sequence[Group], baselines: Sequence[Member]) -> dict[str, Any]:
    """The comparison as plain values, for `--json`."""
    out = []
    for group, baseline in zip(groups, baselines):
        for m in group.members:
            found = {
                n: pair._asdict() for n in PAIRED if m is not baseline and (pair := paired(m.run, baseline.run, n))
            }
            out.append(
                {
                    "stream": group.title, "label": m.label, "runs": [r.run_id for r in m.run.directories],
                    "seeds": [s.seed for s in m.run.done], "status": m.run.status, "mean": m.run.mean,
                    "ci95": m.run.ci95, "baseline": baseline.label, "differences": found,
                }
            )  # fmt: skip
    return {"groups": out}
