"""Runs of one configuration as one: their seeds together, each counted once.

A configuration is the config without what has no influence on the numbers, the seeds apart, and the label: whoever
gives two labels to one config (before and after a change of the code, say) wants to see them apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from nested.report.groups import UNTOLD, conflict, digests
from nested.report.reading import over_seeds
from nested.report.records import Run, Seed


def pooled(runs: Sequence[Run]) -> list[Run]:
    """One record per configuration, in the order of the first run of each; equal seeds on other data stay apart."""
    homes: dict[str, list[list[Run]]] = {}
    order: list[list[Run]] = []
    for run in runs:
        near = homes.setdefault(_configuration(run), [])
        home = next((h for h in near if not any(conflict(digests(run), digests(other)) for other in h)), None)
        if home is None:
            near.append(home := [])
            order.append(home)
        home.append(run)
    return [home[0] if len(home) == 1 else _pool(home) for home in order]


def _configuration(run: Run) -> str:
    told = {k: v for k, v in run.config.items() if v is not None and not k.startswith(UNTOLD)}
    about = [told or run.run_id, run.label, run.stream, run.scenario, run.n, run.lower_is_better]
    return json.dumps(about, sort_keys=True, default=str)


def _pool(runs: Sequence[Run]) -> Run:
    """All seeds of the runs; of a seed that was run again the last that is done."""
    seeds: dict[int, Seed] = {}
    for run in runs:
        for seed in run.seeds:
            if seed.seed not in seeds or seed.status == "done" or seeds[seed.seed].status != "done":
                seeds[seed.seed] = seed
    found = tuple(seeds[s] for s in sorted(seeds))
    mean, ci95 = over_seeds(found)
    done = all(s.status == "done" for s in found) and all(len(r.seeds) == r.planned for r in runs)
    return replace(
        runs[0],
        status="done" if done else next((r.status for r in runs if r.status != "done"), "done"),
        planned=len(found) + sum(r.planned - len(r.seeds) for r in runs),
        seeds=found,
        mean=mean,
        ci95=ci95,
        problems=tuple(dict.fromkeys(p for r in runs for p in r.problems)),
        sources=tuple(runs),
    )
