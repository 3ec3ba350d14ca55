"""Notebooks as plain JSON, and what each cell is for. No Jupyter package is needed here.

A cell's role follows from its source alone; nbgrader's metadata, where a cell has it, wins:

    answer   holds a SOLUTION region: a student writes it
    test     holds a HIDDEN TESTS region, or is the first cell after an answer that asserts something: worth points
    given    everything else
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minivllava.errors import DataError

SOLUTION = ("BEGIN SOLUTION", "END SOLUTION")
HIDDEN = ("BEGIN HIDDEN TESTS", "END HIDDEN TESTS")
UNGRADED = "not-graded"  # tag of a slow or drawn cell that nothing later needs: the grader leaves it out
_POINTS = re.compile(r"#.*?\b(\d+) points?\b")  # in the first line
_ASSERTS = re.compile(r"^\s*(assert|expect|close|check\w*)\b", re.MULTILINE)


@dataclass
class Part:
    """One cell of a source notebook, with what it is for."""

    cell: dict
    role: str  # "given", "answer" or "test"
    name: str  # its grade_id: unique in the notebook
    points: int = 0  # of tests


def read_notebook(path: str | Path) -> dict:
    """The notebook at `path`, of nbformat 4. Raises DataError for what is no notebook."""
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): name a notebook.") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} is no notebook (broken JSON: {error}): save it again in Jupyter.") from error
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(_well_formed(cell) for cell in cells):
        raise DataError(f"{path} is no notebook of nbformat 4: open it in Jupyter and save it again.")
    return notebook


def _well_formed(cell) -> bool:
    source = cell.get("source") if isinstance(cell, dict) else None
    lines = [source] if isinstance(source, str) else source
    return (
        isinstance(lines, list)
        and all(isinstance(line, str) for line in lines)
        and isinstance(cell.get("cell_type"), str)
        and isinstance(cell.get("metadata", {}), dict)
    )


def write_notebook(notebook: dict, path: str | Path):
    """Writes JSON as Jupyter does: one space, one line of source a string."""
    cells = [cell | {"source": source(cell).splitlines(keepends=True)} for cell in notebook["cells"]]
    text = json.dumps(notebook | {"cells": cells}, indent=1, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def source(cell: dict) -> str:
    """A cell's text, in one string."""
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def has_region(cell: dict, region: tuple[str, str]) -> bool:
    """Whether a cell holds the region's first mark."""
    return region[0] in source(cell)


def replace_region(text: str, region: tuple[str, str], stub: str | None, where: str) -> str:
    """The text with every region cut out, marks included; `stub`, where given, stands there instead.

    The stub takes the indentation of the BEGIN line. Raises DataError for marks that do not pair.
    """
    begin, end = region
    kept: list[str] = []
    inside = False
    for line in text.split("\n"):
        if begin in line:
            if inside:
                raise DataError(f"{where}: a second {begin} before the {end}: close each region before the next.")
            inside = True
            indent = line[: len(line) - len(line.lstrip())]
            kept += [indent + row for row in stub.split("\n")] if stub is not None else []
        elif end in line:
            if not inside:
                raise DataError(f"{where}: an {end} without its {begin}: write both lines.")
            inside = False
        elif not inside:
            kept.append(line)
    if inside:
        raise DataError(f"{where}: a {begin} without its {end}: write both lines.")
    return "\n".join(kept)


def parts(notebook: dict, where: str) -> list[Part]:
    """Every cell with its role, its name and its points, in order.

    Answers are called `q1`, `q2`, ...; the test after one `q1-check`. A test is worth what its first line says
    ("# Question 1, 3 points"), else one point. Raises DataError when one cell holds an answer and its hidden
    tests, or when two cells have the same grade_id.
    """
    found: list[Part] = []
    question, pieces, tests = 0, 0, 0  # its number; how many answers and tests of it were seen
    for number, cell in enumerate(notebook["cells"], start=1):
        given = cell.get("metadata", {}).get("nbgrader", {})
        if has_region(cell, SOLUTION) and has_region(cell, HIDDEN):
            raise DataError(f"{where}: cell {number} holds an answer and hidden tests: put the tests in a cell below.")
        open_question = pieces > 0 and tests == 0
        if given.get("solution") or has_region(cell, SOLUTION):
            question, pieces, tests = (question, pieces + 1, 0) if open_question else (question + 1, 1, 0)
            part = Part(cell, "answer", f"q{question}" + (f"-part{pieces}" if pieces > 1 else ""))
        elif cell["cell_type"] == "code" and (
            given.get("grade") or has_region(cell, HIDDEN) or (open_question and _ASSERTS.search(source(cell)))
        ):
            tests += 1
            worth = _POINTS.match(source(cell))
            name = f"q{question}-check" + (f"{tests}" if tests > 1 else "")
            part = Part(cell, "test", name, int(worth.group(1)) if worth else 1)
        else:
            part = Part(cell, "given", f"given-{number}")
        part.name = given.get("grade_id", part.name)
        part.points = given.get("points", part.points)
        found.append(part)
    names = [part.name for part in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where}: two cells have the grade_id {twice[0]!r}: each needs its own.")
    return found


def has_exercises(notebook: dict) -> bool:
    """Whether any cell of a notebook holds an answer to cut out."""
    return any(has_region(cell, SOLUTION) for cell in notebook["cells"])


def notebooks_in(folder: str | Path) -> Iterator[Path]:
    """Every notebook under a folder, in order of name, without Jupyter's autosaved copies."""
    for path in sorted(Path(folder).rglob("*.ipynb")):
        inside = path.relative_to(folder).parts
        if path.is_file() and not any(piece.startswith(".") for piece in inside):
            yield path
