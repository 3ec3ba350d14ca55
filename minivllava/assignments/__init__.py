"""Student copies of the notebooks, graded assignments, and the grader.

One source notebook is tutorial, solution and test. Two pairs of comment lines mark its parts, the same that
nbgrader and otter-grader understand:

    # BEGIN SOLUTION ... # END SOLUTION                what a student writes
    # BEGIN HIDDEN TESTS ... # END HIDDEN TESTS        what only the grader runs

assign.py   strips a source into a student copy          notebook.py  notebooks as JSON, and what each cell is for
grade.py    submissions to rows of points                merge.py     a submission's answers in the source's frame
worker.py   the process that runs one submission         guard.py     what the submission must not touch
tables.py   rows to CSV and HTML                         checks.py    comparisons that say what is wrong
"""

from pathlib import Path


def shipped(name: str = "pretrained/tiny") -> Path:
    """A folder under the repository's `data/`, wherever a student copy of a notebook lies.

    Looked for above the working directory first, then beside the package. Raises DataError when neither has it.
    """
    import minivllava
    from minivllava.errors import DataError

    here = Path.cwd()
    for folder in (here, *here.parents, Path(minivllava.__file__).resolve().parent.parent):
        if (folder / "data" / name).exists():
            return folder / "data" / name
    raise DataError(f"data/{name} was not found above {here}: work inside a checkout of minivllava.")
