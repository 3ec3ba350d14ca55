"""From source notebooks to student copies and instructor copies (`minivllava assign`).

A student copy has each solution replaced by a stub that raises NotImplementedError, no hidden tests and no
outputs; the visible checks stay. Both kinds of copy carry nbgrader's metadata, so `nbgrader` takes the
instructor copy as its source, and a filled-in student copy as a submission.
"""

import copy
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from minivllava.assignments.notebook import (
    HIDDEN,
    SOLUTION,
    has_exercises,
    notebooks_in,
    parts,
    read_notebook,
    replace_region,
    source,
    write_notebook,
)
from minivllava.errors import DataError

# nbgrader's own, so that its release of an instructor copy is equal to ours
CODE_STUB = "# YOUR CODE HERE\nraise NotImplementedError()"
TEXT_STUB = "YOUR ANSWER HERE"
_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)\s]+)\)")  # a relative one that leaves its folder


def assign(out: str | Path, sources: str | Path, instructor: bool = False) -> dict[str, list[Path]]:
    """Writes a student copy of every notebook under `sources` that has exercises. All or nothing.

    out: a folder that is not there yet, or empty; it holds the copies, or with `instructor` the folders
    `student` and `instructor`. Returns the files by "student", "instructor" and, of notebooks without exercises,
    "left out". Raises DataError for a folder in the way or inside `sources`, no exercises at all, or marks that do not
    pair.
    """
    out, sources = Path(out), Path(sources)
    if not sources.is_dir():
        raise DataError(f"{sources} is no folder: name the one that holds the notebooks with --source.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} is there already: name a new folder, so that nobody's answers are overwritten.")
    if out.resolve().is_relative_to(sources.resolve()):
        raise DataError(f"{out} lies inside {sources}, and copies there would pass for sources: name another folder.")
    notebooks = {path.relative_to(sources): read_notebook(path) for path in notebooks_in(sources)}
    chosen = {path: notebook for path, notebook in notebooks.items() if has_exercises(notebook)}
    if not chosen:
        raise DataError(f"{sources} holds no notebook with a `# {SOLUTION[0]}` line: there is nothing to assign.")
    makers: dict[str, Callable] = {"student": student_copy} | ({"instructor": instructor_copy} if instructor else {})
    folders = {kind: Path(kind) if instructor else Path() for kind in makers}
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for kind, make in makers.items():
            for path, notebook in chosen.items():
                target = beside / folders[kind] / path
                target.parent.mkdir(parents=True, exist_ok=True)
                write_notebook(make(notebook, path), target)
        beside.chmod(0o755)
        if out.exists():
            out.rmdir()
        os.replace(beside, out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    written = {kind: [out / folders[kind] / path for path in chosen] for kind in makers}
    return written | {"left out": [sources / path for path in notebooks if path not in chosen]}


def student_copy(notebook: dict, path: Path) -> dict:
    """A notebook without solutions, hidden tests and outputs."""
    copied = instructor_copy(notebook, path)
    for number, cell in enumerate(copied["cells"], start=1):
        where = f"{path}, cell {number}"
        code = cell["cell_type"] == "code"
        text = replace_region(source(cell), SOLUTION, CODE_STUB if code else TEXT_STUB, where)
        cell["source"] = replace_region(text, HIDDEN, None, where)
        if code:
            cell["outputs"], cell["execution_count"] = [], None
            cell["metadata"].pop("execution", None)
    return copied


def instructor_copy(notebook: dict, path: Path) -> dict:
    """The notebook as it is, with nbgrader's metadata (schema 3) on cells that count, and with links to files outside
    the notebooks' folder as plain names, since a copy elsewhere would not reach them.

    Answers stay editable; tests are locked and worth points. In a graded assignment everything else is locked
    too: what is set up for the tests is not the student's to change.
    """
    copied = copy.deepcopy(notebook)
    for cell in copied["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = _LINK.sub(lambda link: _named(link, path), source(cell))
    about = copied.setdefault("metadata", {}).setdefault("minivllava", {})
    about["assignment"] = path.stem
    for part in parts(copied, str(path)):
        metadata = part.cell.setdefault("metadata", {})
        locked = part.role == "test" or (part.role == "given" and bool(about.get("graded")))
        if part.role == "given" and not locked:
            continue
        written = part.role == "answer" and part.cell["cell_type"] != "code"  # text, which a person grades
        metadata["nbgrader"] = {
            "grade": part.role == "test" or written,
            "grade_id": part.name,
            "locked": locked,
            "schema_version": 3,
            "solution": part.role == "answer",
            "task": False,
        } | ({"points": part.points} if part.role == "test" or written else {})
        metadata["deletable"] = False
        if locked:
            metadata["editable"] = False
    return copied


def _named(link: re.Match, path: Path) -> str:
    """ "[how](../data/a.md)" as "how (`data/a.md` in the repository)"; a link to another notebook as it is."""
    target = os.path.normpath(path.parent / link[2])
    if not target.startswith(".."):
        return link[0]
    return f"{link[1]} (`{target.replace('../', '')}` in the repository)"
