"""Ablations: every study of the paper, and its ten questions, at this scale. `minivllava ablate NAME` runs one.

studies/*.toml   the studies: arms as differences from a common base, claims of the paper, metrics
study.py         reads them
settings.py      all that decides a cell's numbers: its settings, changes to them, its key
parts.py         encoders and language models that arms start from, each trained once
records.py       which records an arm learns from and is asked about
cell.py          one cell: a model trained by one arm's settings from one seed, and its scores
runner.py        the grid of arms and seeds: finished cells are kept, processes share what is left
plan.py          what a study will cost, before it runs
statistics.py    intervals, paired differences, verdicts
results.py       from cells to data/results/NAME.json, .png, .md
questions.py     from results to data/results/QUESTIONS.md, the answers to the ten questions of questions.toml
run_study.py     a study from its settings to its page
"""

from pathlib import Path

RESULTS = Path("data/results")
STUDY_PARTS = RESULTS / "parts"  # of short training, which arms with parts of their own can be given as well
