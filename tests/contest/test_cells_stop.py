"""nested/cells.py: whoever stops listening to outcomes, or is killed, leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from nested.cells import outcomes

HERE = Path(__file__).parent
SCRIPT = (
    "import signal, cell_functions as c, nested.cells as n; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored in what a script began in the background
    "list(n.outcomes(c.sleep, [{path!r}], 1))"
)


def gone(pid: int) -> bool:
    """Whether a process ends, at the latest in a minute."""
    for _ in range(600):
        file = Path(f"/proc/{pid}/stat")
        if not file.exists() or file.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def pid_in(file: Path) -> int:
    while not (file.exists() and file.read_text()):
        time.sleep(0.05)
    return int(file.read_text())


def test_whoever_leaves_takes_the_processes_along(tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import cell_functions

    found = outcomes(cell_functions.sleep, ["", str(tmp_path / "pid")], 2)
    assert next(found) == ("", None)
    pid = pid_in(tmp_path / "pid")
    found.close()  # type: ignore[attr-defined]
    assert gone(pid)


def test_a_ctrl_c_is_the_parents_business_even_while_a_process_starts(tmp_path: Path):
    command = [sys.executable, "-c", SCRIPT.format(path=str(tmp_path / "pid"))]
    parent = subprocess.Popen(command, cwd=HERE, start_new_session=True, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while len(there := children.read_text().split()) < 2:  # the tracker of semaphores, and the process
        time.sleep(0.002)
    os.killpg(parent.pid, signal.SIGINT)
    said = parent.communicate(timeout=60)[1]
    assert said.count("Traceback") == 1, said  # the parent's own
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    assert all(gone(int(pid)) for pid in there)


def test_a_killed_parent_takes_them_along(tmp_path: Path):
    path = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT.format(path=str(path))], cwd=HERE)
    pid = pid_in(path)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert gone(pid)
