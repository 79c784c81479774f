"""Tuning: a study searches values of a config for the best trial. The only package that knows Optuna.

`search.py` tells the story; a trial is `nested.run.run_trial` on a config with the trial's values, by dotted path.
"""
