"""What processes of tests are given to do."""

import os
import time
from pathlib import Path


def sleep(path: str) -> None:
    """Say who we are and sleep for long; return at once without a path."""
    if path:
        Path(path).write_text(str(os.getpid()))
        time.sleep(600)
