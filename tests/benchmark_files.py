"""What the tests of benchmarks share: hand-made files in the real formats, and small media to go with them."""

import json
from pathlib import Path

import numpy as np
from tiny import square

from minivllava.evaluation.benchmarks import benchmark
from minivllava.evaluation.predictions import Problems

FILES = Path(__file__).parent / "fixtures/benchmarks"


def scored(name: str, questions: Path | str, answers: Path | str, keep_going: bool = False, **options) -> dict:
    """A benchmark's scores of two files, by default of FILES, with the problems found in them."""
    problems = Problems(keep_going)
    result = benchmark(name).score(FILES / questions, FILES / answers, problems, **options)
    return result | {"problems": problems.found}


def written(path: Path, rows: list) -> Path:
    """A file of JSON lines; rows that are text are written as they are."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def clip(colour: str) -> np.ndarray:
    """Four frames of a square that moves right, uint8 (t, h, w, 3)."""
    return np.stack([square(colour, left) for left in range(0, 16, 4)])
