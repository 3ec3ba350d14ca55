"""Rows of points as a CSV file and an HTML page."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from minivllava.assignments.grade import Row
from minivllava.files import write_text


def totals(rows: Iterable[Row]) -> list[dict]:
    """One line for each submission: `student`, `assignment`, `file`, `points`, `out_of`, `remarks` (how many)."""
    lines: dict[tuple, dict] = {}
    for row in rows:
        line = lines.setdefault(
            (row.student, row.assignment, row.file),
            {"student": row.student, "assignment": row.assignment, "file": row.file, "points": 0, "out_of": 0,
             "remarks": 0},
        )  # fmt: skip
        line["points"] += row.points
        line["out_of"] += row.out_of
        line["remarks"] += bool(row.message)
    return list(lines.values())


def write_tables(rows: list[Row], folder: str | Path) -> tuple[Path, Path]:
    """Writes `grades.csv` and `grades.html`. Returns their paths."""
    import jinja2

    folder = Path(folder)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Row.__dataclass_fields__)
    for row in rows:
        table.writerow([_harmless(getattr(row, name)) for name in Row.__dataclass_fields__])
    environment = jinja2.Environment(loader=jinja2.PackageLoader("minivllava", "assignments"), autoescape=True)
    page = environment.get_template("grades.html.jinja").render(rows=rows, totals=totals(rows))
    files = folder / "grades.csv", folder / "grades.html"
    for file, content in zip(files, (text.getvalue(), page), strict=True):
        write_text(file, content)
    return files


def _harmless(value):
    """Text that a spreadsheet would run as a formula gets a quote before it."""
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
