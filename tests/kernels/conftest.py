"""Triton decides once, when it is imported, whether kernels are interpreted or compiled: each has a process of its own.

`test_triton_processes.py` starts them. By hand: TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreter, and
TRITON_INTERPRET=0 python -m pytest tests/kernels/aot.
"""

import os

PROCESSES = {"interpreter": "1", "aot": "0"}

collect_ignore = [folder for folder, word in PROCESSES.items() if os.environ.get("TRITON_INTERPRET") != word]
