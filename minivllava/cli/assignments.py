"""Teaching: assign, grade."""

from pathlib import Path
from typing import Annotated

import typer

from minivllava.cli.app import app, writable

Sources = Annotated[Path, typer.Option(help="The folder of the source notebooks.")]
NOTEBOOKS = Path("notebooks")


@app.command()
def assign(
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="A new folder for the copies.")],
    instructor: Annotated[
        bool, typer.Option("--instructor", help="Write the solved copies too: OUT_DIR/student, OUT_DIR/instructor.")
    ] = False,
    source: Sources = NOTEBOOKS,
):
    """Write student copies of the notebooks: no solutions, no hidden tests, no outputs; checks stay."""
    from minivllava.assignments.assign import assign as write_copies

    written = write_copies(out, source, instructor)
    for kind in ("student", "instructor"):
        for path in written.get(kind, []):
            print(f"{kind:<11} {path}")
    for path in written["left out"]:
        print(f"{'left out':<11} {path} (no exercises)")


@app.command()
def grade(
    submissions: Annotated[
        Path, typer.Argument(metavar="SUBMISSION_DIR", help="A folder or a notebook for each student.")
    ],
    out: Annotated[Path | None, typer.Option(help="Where the tables go; by default SUBMISSION_DIR-grades.")] = None,
    source: Sources = NOTEBOOKS,
    seconds: Annotated[float, typer.Option(min=0.1, help="Wall-clock limit of each cell.")] = 60.0,
    memory: Annotated[int, typer.Option(min=50, help="Memory limit in MB, beyond what the imports take.")] = 2000,
    jobs: Annotated[int, typer.Option(min=1, help="Submissions graded at a time.")] = 1,
):
    """Run the hidden tests on every submission, each in its own process: grades.csv and grades.html."""
    from rich.console import Console
    from rich.table import Table

    from minivllava.assignments.grade import Limits
    from minivllava.assignments.grade import grade as grade_all
    from minivllava.assignments.tables import totals, write_tables

    whole = submissions.resolve()
    out = out or whole.with_name((whole.name if whole.is_dir() else whole.stem) + "-grades")
    writable(out, folder=True)
    rows = grade_all(submissions, source, Limits(seconds, memory), jobs)
    shown = Table("student", "assignment", "file", title="Grades", title_justify="left")
    shown.add_column("points", justify="right")
    for line in totals(rows):
        name = line["assignment"] or "none (see the table)"
        shown.add_row(line["student"], name, line["file"], f"{line['points']} of {line['out_of']}")
    console = Console(markup=False)  # names of students and files are no markup
    console.width = max(console.width, 110)
    console.print(shown)
    files = write_tables(rows, out)
    print(f"Points and messages by question: {files[0]} and {files[1]}")
