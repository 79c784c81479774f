"""A method that kills its process once, named in the config of a test's trial."""

import os
import signal
from pathlib import Path

from nested.methods.method import Method


class Dying(Method):
    """Train as naive does, and kill the process the first time that a seed begins its second experience."""

    def __init__(self, seed: int, mark: str, victim: int):
        self.seed, self.mark, self.victim = seed, Path(mark), victim
        self.begun = 0

    def before_experience(self, learner, experience) -> None:
        self.begun += 1
        if self.begun == 2 and self.seed == self.victim and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def state_dict(self):
        return {"begun": self.begun}

    def load_state_dict(self, state) -> None:
        self.begun = state["begun"]
