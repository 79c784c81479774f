"""The verdict in words: first whatever matches or beats the candidate, a plain average of weights before all else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nested.contest.arms import EMA, EQUAL, Arm
from nested.contest.verdict import LEVEL, Comparison
from nested.report.pairs import p_value
from nested.wording import counted

FEW_RATES, FEW_ORDERS = 5, 10


@dataclass(frozen=True)
class Against:
    """The candidate against one control, whose FLOPs are `cost` times its own."""

    arm: Arm
    found: Comparison | None
    cost: float | None = None

    @property
    def average(self) -> bool:
        """Whether it is a plain average of weights."""
        return self.arm.config.method["_target_"] == EMA


def nothing(name: str, learned: float, guess: float) -> str:
    """The verdict on a candidate that answers no better than a constant guess at its best rate."""
    text = f"its learning accuracy is at most {learned:.3f}, that of a constant guess {guess:.3f}"
    how = "train longer (trainer.epochs), or take other rates (contest.factors) or another optimizer"
    return f"{_capital(name)} learned nothing at any rate, so that there is nothing to compare: {text}; {how}."


def verdict(name: str, fights: Sequence[Against], measure: str) -> list[str]:
    """Sentences, the one that counts first. `name` is the candidate's, `measure` the word for its score."""
    known = [a for a in fights if a.found is not None]
    of = {k: [a for a in known if a.found and a.found.outcome == k] for k in ("more", "even", "less", "apart")}
    rivals = sorted([*of["more"], *of["even"]], key=_difference)
    first = next((a for a in rivals if a.average), None) or next(iter(rivals), None)
    most = max((a.found.orders for a in known if a.found), default=0)
    said = []
    if first:
        subject = "A plain average of weights" if first.average else _capital(first.arm.title)
        word = "beats" if first in of["more"] else "matches"
        said.append(f"{subject} {word} {name}: {_fact(name, first, measure)}.")
        said += _listed("It is beaten by", [a for a in of["more"] if a is not first], most)
        said += _listed("It is matched by", [a for a in of["even"] if a is not first], most)
        said += _listed("It forgets less than", of["less"], most)
    elif of["less"]:
        closest = min(of["less"], key=_difference)
        many = f"; it is the closest of {len(of['less'])} controls" if len(of["less"]) > 1 else ""
        said.append(f"{_fact(name, closest, measure, first=True)}{many}.")
        said += _listed("It forgets less than", [a for a in of["less"] if a is not closest], most)
    else:
        said.append(f"No control can be compared with {name}: none has learned equally well.")
    if of["apart"]:
        told = "; ".join(_apart(a) for a in sorted(of["apart"], key=_difference))
        said.append(f"At equal learning no comparison, since nothing is extrapolated: it {told}.")
    if lost := [a.arm.title for a in fights if a.found is None]:
        said.append(f"Not compared, their frontiers meeting in too few orders, or having none: {'; '.join(lost)}.")
    if known:
        many = counted(len(known), "control")
        said.append(
            f"p: two-sided paired t-test, corrected by Holm for {many}; a control matches where "
            f"p is {LEVEL:g} or more, which with few orders may be for want of them."
        )
    return said


def caveats(rates: int, orders: int, levels: int, counted: bool = True) -> list[str]:
    """What a reader must know before believing it; `counted`: whether the candidate's step has FLOPs."""
    said = []
    if not counted:
        said.append("No FLOPs are counted for the candidate, which has no matrix product: equal FLOPs are equal steps.")
    if levels == 1:
        said.append("The candidate has one level: nothing here is about levels; it meets averages, heads and replay.")
    if rates < FEW_RATES:
        said.append(f"{rates} rates make no frontier to rely on; {FEW_RATES} or more do.")
    if orders < FEW_ORDERS:
        said.append(f"{orders} orders are few; {FEW_ORDERS} are the default.")
    return said


def _difference(against: Against) -> float:
    assert against.found is not None
    return against.found.difference


def _fact(name: str, against: Against, measure: str, first: bool = False) -> str:
    """The comparison, as the `first` thing of a sentence or within one."""
    c = against.found
    assert c is not None
    if c.learning is not None:
        where = f"{'At' if first else 'at'} equal learning {measure} {abs(c.learning):.2f} and {flops(against.cost)}"
        return f"{where}, {name} forgets {forgets(c)} than {against.arm.title}, {p_of(c)}, {c.orders} orders"
    return f"{name} {_apart(against)}, {c.orders} orders"


def _apart(against: Against) -> str:
    """What the candidate does where frontiers do not meet."""
    c = against.found
    assert c is not None
    least = math.floor(100 * abs(c.gap)) / 100
    learns = f"learns {'less' if c.gap > 0 else 'more'} than {against.arm.title}, by {least:.2f} or more"
    return f"{learns}, and forgets {forgets(c)} where they are nearest, at {flops(against.cost)}, {p_of(c)}"


def forgets(c: Comparison) -> str:
    """`0.040 ± 0.020 less`."""
    half = "" if c.half is None else f" ± {c.half:.3f}"
    return f"{abs(c.difference):.3f}{half} {'less' if c.difference >= 0 else 'more'}"


def p_of(c: Comparison) -> str:
    text = p_value(c.holm)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def flops(cost: float | None) -> str:
    """`equal FLOPs`, or how many times the candidate's."""
    if cost is None:
        return "unknown FLOPs"
    return "equal FLOPs" if abs(cost - 1) <= EQUAL else f"{cost:.2g} times its FLOPs"


def _listed(words: str, against: Sequence[Against], most: int) -> list[str]:
    """One sentence for several controls, those that forget least first; orders are told where they are not the most."""
    if not against:
        return []
    parts = []
    for a in sorted(against, key=_difference):
        assert a.found is not None
        learned = f"having learned {abs(a.found.gap):.2f} {'less' if a.found.gap > 0 else 'more'}"
        where = learned if a.found.learning is None else f"at {abs(a.found.learning):.2f}"
        cost = "" if a.cost is None or abs(a.cost - 1) <= EQUAL else f", {flops(a.cost)}"
        orders = f", {a.found.orders} orders" if a.found.orders < most else ""
        parts.append(f"{a.arm.title} ({forgets(a.found)} {where}, {p_of(a.found)}{cost}{orders})")
    return [f"{words}: {'; '.join(parts)}."]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
