"""Training on everything at once, the upper bound of every table."""

from __future__ import annotations

from nested.methods.method import Method
from nested.streams.stream import Examples, Experience, Stream


class Joint(Method):
    """Train once on the examples of all experiences together: what a learner with no memory limit reaches."""

    ordered = False

    def experiences(self, stream: Stream) -> list[Experience]:
        every = stream.experiences
        parts = {p: Examples.concat([getattr(e, p) for e in every]) for p in ("train", "validation", "test")}
        classes = tuple(dict.fromkeys(c for e in every for c in e.classes))
        return [Experience(index=0, name="all together", task=every[0].task, classes=classes, **parts)]
