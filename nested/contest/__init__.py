"""The contest: a candidate against every control that could explain it, at every rate, over the same class orders.

`run.py` tells the story; `arms.py` says who fights, `verdict.py` who forgets less at equal learning.
"""
