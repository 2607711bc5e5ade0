"""How fast is refnet, against whom, and how does time grow? The command ``refnet bench``.

Contestants take turns in one process, round by round, so that a busy or a throttled machine slows all of them, and what
counts is the ratio of their medians. Results are compared before anything is timed: a wrong result is a failure, not a
time. Who isn't there (PyTorch, torchvision, CuPy) is left out by name.

contest.py     a call by every contestant     stopwatch.py   rounds, medians, quartiles     contestants.py  who is there
bars.py        what is asked                  run.py         from subjects to results       subjects.py     the list
layers.py, operations.py, models.py, training.py, evaluation.py, memory.py, scaling.py: what is measured
rule.py        weights without a file         torch_peers.py, torch_models.py: the same by PyTorch and torchvision
report.py      table, JSON, terminal          charts.py      pictures                        explain.py      the planner
"""
