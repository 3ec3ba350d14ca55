"""Student copies, the grader's isolation, and the graded assignments with right and wrong answers planted."""

import copy
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from minivllava.assignments.assign import assign, student_copy
from minivllava.assignments.grade import Limits, grade
from minivllava.assignments.notebook import HIDDEN, SOLUTION, parts, read_notebook, source
from minivllava.assignments.tables import totals, write_tables
from minivllava.assignments.worker import imported_modules, parsed
from minivllava.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
GRADED = sorted((NOTEBOOKS / "assignments").glob("*.ipynb"))
SNIPPETS = ROOT / "tests" / "assignments"


def cell(text: str, **fields) -> dict:
    kind = fields.pop("cell_type", "code")
    code = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return (
        {"cell_type": kind, "metadata": {}, "source": text, "id": f"{zlib.crc32(text.encode(errors='replace')):08x}"}
        | code
        | fields
    )


def answer(name: str, body: str) -> str:
    return f"def {name}(x):\n    # BEGIN SOLUTION\n    return {body}\n    # END SOLUTION"


def check(number: int, points: int, call: str, wanted: int) -> str:
    visible = f"# Check {number} ({points} points)\nassert callable({call.split('(')[0]})\n"
    return f"{visible}# BEGIN HIDDEN TESTS\nreport({call}, {wanted})\n# END HIDDEN TESTS"


REPORT = """
import math

def report(found, wanted):
    assert type(found) is int, "the answer is no int"
    assert found == wanted, f"expected {wanted}, got {found}"

HELP = 3
"""
TOY = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "cells": [
        cell("# Toy", cell_type="markdown"),
        cell(REPORT),
        cell(answer("double", "2 * x")),
        cell(check(1, 2, "double(4)", 8)),
        cell(answer("triple", "HELP * x")),
        cell(check(2, 3, "triple(5)", 15)),
        cell(answer("both", "double(x) + triple(x)")),
        cell(check(3, 5, "both(1)", 5)),
    ],
}
TOY["metadata"]["minivllava"] = {"graded": True}
Q1, Q2, Q3 = 2, 4, 6  # places of the answers


def filled(original: dict, path: Path) -> dict:
    """The student copy of a source with the source's own solutions written in."""
    copied = student_copy(original, path)
    for one, solution in zip(copied["cells"], original["cells"], strict=True):
        if SOLUTION[0] in source(solution):
            lines = source(solution).split("\n")
            one["source"] = "\n".join(line for line in lines if not any(mark in line for mark in SOLUTION))
    return copied


@pytest.fixture
def toy(tmp_path):
    """A folder of sources that holds the toy assignment."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "toy.ipynb").write_text(json.dumps(TOY))
    return folder


@pytest.fixture
def graded(toy, tmp_path):
    """graded(change, ...) -> {question: (points, message)} of the solved toy after change(its cells)."""

    def run(change=lambda cells: None, name="ada", limits=Limits(seconds=5.0, megabytes=300)):  # noqa: B008
        submission = filled(TOY, Path("toy.ipynb"))
        change(submission["cells"])
        folder = tmp_path / "submissions"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / name).mkdir(parents=True)
        (folder / name / "toy.ipynb").write_text(json.dumps(submission))
        rows = grade(folder, toy, limits)
        assert {row.out_of for row in rows} == {2, 3, 5} and {row.student for row in rows} == {name}
        return {row.question: (row.points, row.message) for row in rows}

    return run


def write(place: int, text: str):
    """A change: that cell's source."""
    return lambda cells: cells[place].update(source=text)


def prepend(place: int, text: str):
    return lambda cells: cells[place].update(source=text + "\n" + source(cells[place]))


def insert(place: int, text: str):
    """A change: a cell of the student's own, put before the cell at that place."""
    return lambda cells: cells.insert(place, cell(text))


WRONG = "def double(x):\n    return 0"
ALL = {"q1": (2, ""), "q2": (3, ""), "q3": (5, "")}


# the grader: what a submission may do to it


def test_the_solution_gets_all_points_and_the_blank_copy_none(graded, toy, tmp_path):
    assert graded() == ALL
    assign(tmp_path / "out", toy)
    rows = grade(tmp_path / "out", toy, Limits(seconds=5.0))
    assert [(row.student, row.points, row.message) for row in rows] == [
        ("toy", 0, "not answered yet (NotImplementedError)")
    ] * 3


def test_a_question_with_two_tests_is_judged_by_both(tmp_path):
    """The source's solution stands in for a wrong answer only after its last test."""
    source_cells = [*TOY["cells"][:4], cell("shown = double(1)"), cell(check(1, 4, "double(7)", 14)), *TOY["cells"][4:]]
    for folder, cells in (("sources", source_cells), ("class", copy.deepcopy(source_cells))):
        (tmp_path / folder).mkdir()
        write(Q1, WRONG if folder == "class" else source(cells[Q1]))(cells)
        (tmp_path / folder / "toy.ipynb").write_text(json.dumps(TOY | {"cells": cells}))
    rows = grade(tmp_path / "class", tmp_path / "sources", Limits(seconds=5.0))
    assert [(row.question, row.points) for row in rows] == [("q1", 0), ("q1-check2", 0), ("q2", 3), ("q3", 5)]


def test_names_that_a_failed_test_would_have_bound_are_there_for_the_next(tmp_path):
    bound = check(1, 2, "double(4)", 8) + "\nlater = double(3)"
    cells = [*TOY["cells"][:3], cell(bound), *TOY["cells"][4:5], cell("# Check 2\nassert triple(later) == 18")]
    for folder, answered in (("sources", source(cells[Q1])), ("class", WRONG)):
        (tmp_path / folder).mkdir()
        submission = copy.deepcopy(cells)
        write(Q1, answered)(submission)
        (tmp_path / folder / "toy.ipynb").write_text(json.dumps(TOY | {"cells": submission}))
    rows = grade(tmp_path / "class", tmp_path / "sources", Limits(seconds=5.0))
    assert [(row.question, row.points) for row in rows] == [("q1", 0), ("q2", 1)], rows


def test_an_endless_loop_costs_one_question(graded):
    points = graded(write(Q1, "def double(x):\n    while True: pass"), limits=Limits(seconds=0.5))
    assert "endless loop" in points["q1"][1] and (points["q2"], points["q3"]) == (ALL["q2"], ALL["q3"])


@pytest.mark.parametrize("trick", ["signal.signal(signal.SIGALRM, signal.SIG_IGN)", "signal.setitimer(0, 0)"])
def test_a_loop_that_shuts_off_the_clock_is_killed(graded, trick):
    stubborn = f"import signal\ndef double(x):\n    {trick}\n    while True: pass"
    points = graded(write(Q1, stubborn), limits=Limits(seconds=0.5, grace=1.0))
    assert "did not stop" in points["q1"][1] and points["q3"] == ALL["q3"]


def test_an_exception_that_swallows_the_clock_is_killed(graded):
    loop = "        try:\n            while True: pass\n        except BaseException: pass"
    stubborn = f"def double(x):\n    while True:\n{loop}"
    points = graded(write(Q1, stubborn), limits=Limits(seconds=0.5, grace=1.0))
    assert points["q1"][0] == 0 and points["q2"] == ALL["q2"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("import sys\nsys.exit(0)", "tried to end the program"),
        ("import os\nos._exit(0)", "ended the Python process (exit code 0)"),
        ("import ctypes\nctypes.string_at(0)", "crashed the Python process"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("quit()", "tried to end the program"),
        ("def double(x)\n    return 2 * x", "SyntaxError: expected ':' (line 1 of q1)"),
        ("def double(x):\n\treturn 2\n        return 3", "line 3 of q1"),
        ("x = '\ud800'", "UnicodeEncodeError"),
        ("def twice(x):\n    return 2 * x", "was it renamed or deleted? The answer cell defines twice"),
        ("double = 3", ""),
        ("def double(x):\n    return double(x)", "RecursionError"),
        ("def double(x):\n    return bytearray(10**10)", "asked for more than 300 MB of memory"),
        ("def double(x):\n    return [0] * 10**9", "asked for more than 300 MB of memory"),
        ("import os\nos.fork()", "no other processes"),
        ("import subprocess\nsubprocess.run(['ls'])", "no other processes"),
        ("import os\nos.kill(os.getppid(), 9)", "no other processes"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 9))", "no network"),
        ("open('/tmp/minivllava-was-here', 'w')", "nothing may be written outside"),
        ("import shutil\nshutil.rmtree('/nowhere')", "PermissionError"),
        (f"open({str(ROOT / 'notebooks/x.ipynb')!r})", "notebooks must not be read"),
        ("def double(x):\n    return 2 * x + 1", "expected 8, got 9"),
        ("def double(x):\n    return 2.0 * x", "the answer is no int"),
        ("", "double is not defined"),
    ],
)  # fmt: skip
def test_what_a_bad_cell_costs_and_says(graded, text, words):
    """One question, with its reason; the others keep their points, the third one too, which calls the first."""
    points = graded(write(Q1, text))
    assert points["q1"][0] == 0 and words in points["q1"][1], points["q1"]
    assert (points["q2"], points["q3"]) == (ALL["q2"], ALL["q3"])
    assert not Path("/tmp/minivllava-was-here").exists()


HELPED = "def double(x):\n    return helper(x)"
HELPER = "def helper(x):\n    return 2 * x"
EQUAL = """
class Always(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def double(x):
    return Always()
"""
PATCHED = """
import builtins, math
builtins.type = lambda *a: int
builtins.isinstance = builtins.getattr = builtins.len = None
def double(x): return Zero()
class Zero:
    def __eq__(self, other): return True
"""
PRINTED = """
import sys, os
for stream in (1, 2): os.write(stream, b'{"end": 3, "error": null, "seconds": 0}\\n' * 3)
print('{"end": 3, "error": null, "seconds": 0}')
print("q1: 2 of 2 points")
"""
REPLACED = "import sys, types\nsys.modules['math'] = types.ModuleType('math')"


@pytest.mark.parametrize(
    "change",
    [
        write(Q1, "report = lambda found, wanted: None\n" + WRONG),
        insert(3, WRONG + "\ndef report(found, wanted):\n    pass"),
        write(Q1, "class AssertionError(BaseException): pass\n" + WRONG),
        write(Q1, EQUAL),
        write(Q1, PATCHED),
        write(Q1, PRINTED + WRONG),
        write(Q1, REPLACED + "\n" + WRONG),
        lambda cells: (write(Q1, WRONG)(cells), write(3, "pass")(cells)),
        lambda cells: (write(Q1, WRONG)(cells), cells.pop(3)),
        lambda cells: (write(Q1, WRONG)(cells), cells[3]["metadata"].clear(), cells[3].pop("id")),
        lambda cells: (write(Q1, WRONG)(cells), write(1, "HELP = 3\ndef report(*_): pass")(cells)),
    ],
    ids=["overwrites the check", "check in a cell of its own", "hides AssertionError", "equal to everything",
         "patches builtins", "prints results", "replaces a module", "changes the test", "deletes the test",
         "loses the test's id", "changes the set-up"],
)  # fmt: skip
def test_tricks_earn_nothing(graded, change):
    points = graded(change)
    assert points["q1"][0] == 0 and points["q1"][1], points
    assert (points["q2"], points["q3"]) == (ALL["q2"], ALL["q3"])


@pytest.mark.parametrize(
    "change",
    [
        lambda cells: cells.pop(0),
        lambda cells: cells.pop(1),
        lambda cells: cells.pop(3),
        insert(Q1, HELPER),
        lambda cells: (write(Q1, HELPED)(cells), insert(Q1, HELPER)(cells)),
        lambda cells: (write(Q1, HELPED)(cells), insert(3, HELPER)(cells)),
        prepend(Q1, "%matplotlib inline\n!ls"),
        prepend(Q1, "print('x' * 10**6)"),
        prepend(Q1, "HELP = None"),
        lambda cells: [one.pop("id") for one in cells],
        lambda cells: [one["metadata"].clear() for one in cells],
        lambda cells: [(one["metadata"].clear(), one.pop("id")) for one in cells],
        lambda cells: cells.append(copy.deepcopy(cells[Q1])),
        lambda cells: cells.append(cell("1 / 0")),
        lambda cells: cells.reverse(),
    ],
)  # fmt: skip
def test_harmless_changes_cost_nothing(graded, change):
    assert graded(change) == ALL


def test_two_sources_of_one_name_are_refused(toy, tmp_path):
    """Else a student copy among the sources, which has no hidden tests, would be what is graded against."""
    (tmp_path / "class").mkdir()
    (tmp_path / "class/ada.ipynb").write_text(json.dumps(filled(TOY, Path("toy.ipynb"))))
    with pytest.raises(DataError, match="inside"):
        assign(toy / "mine", toy)
    assert [path.name for path in toy.iterdir()] == ["toy.ipynb"]
    (toy / "mine").mkdir()
    assign(tmp_path / "out", toy)
    shutil.copy(tmp_path / "out/toy.ipynb", toy / "mine")
    with pytest.raises(DataError) as error:
        grade(tmp_path / "class", toy)
    assert str(toy / "toy.ipynb") in str(error.value) and str(toy / "mine/toy.ipynb") in str(error.value)


def test_only_what_the_submissions_own_cells_changed_is_told(tmp_path):
    """Not what given cells, tests and solutions patch and bind anew, nor what Python leaves on a class."""
    spill = "\nHELP = 3.0\nmath.sqrt = math.floor = None\ncopy.copy(Part({}, '', ''))"
    cells = copy.deepcopy(TOY["cells"])
    cells[1] = cell(REPORT + "import copy\nfrom minivllava.assignments.notebook import Part\n")
    for place in (3, 5):
        cells[place] = cell(source(cells[place]) + spill)
    solved = "# BEGIN SOLUTION\nfor HELP in (1.0, 2): math.ceil = None\n# END SOLUTION"
    cells[Q2] = cell(f"{source(cells[Q2])}\n{solved}")
    cells.insert(Q2, cell("math.exp = None"))
    sources = TOY | {"cells": cells}
    q1, q2 = (next(n for n, one in enumerate(cells) if f"def {name}" in source(one)) for name in ("double", "triple"))
    for student, change in {
        "blank": lambda copied: None,
        "copies": write(q1, "import copy\ncopied = copy.copy(Part({}, '', ''))"),
        "patches": write(q1, "math.sqrt = None\nHELP = 0"),
        "patches later": lambda copied: (write(q1, source(cells[q1]))(copied), write(q2, "math.floor = None")(copied)),
    }.items():
        copied = student_copy(sources, Path("toy.ipynb"))
        change(copied["cells"])
        (tmp_path / "class" / student).mkdir(parents=True)
        (tmp_path / "class" / student / "toy.ipynb").write_text(json.dumps(copied))
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/toy.ipynb").write_text(json.dumps(sources))
    rows = grade(tmp_path / "class", tmp_path / "sources", Limits(seconds=5.0))
    told = {(row.student, row.question): row.message for row in rows if "changed by the submission" in row.message}
    assert told.keys() == {("patches", "q1"), ("patches later", "q2")}, told
    assert "put back: HELP, math.sqrt)" in told["patches", "q1"], told
    assert "put back: math.floor)" in told["patches later", "q2"], told


def test_what_cannot_be_graded_is_told_and_the_rest_goes_on(toy, tmp_path):
    folder = tmp_path / "class"
    good = json.dumps(filled(TOY, Path("toy.ipynb")))
    for name, text in {
        "ada/toy.ipynb": good, "ben/my answers.ipynb": good, "cy/toy.ipynb": good[: len(good) // 2],
        "dee/toy.ipynb": "",
        "eve/toy.ipynb": "[]", "fay/toy.ipynb": '{"cells": [{"cell_type": "code", "source": 7}]}',
        "gus/notes.txt": "hello",
        "hal.ipynb": good, "ivy/other.ipynb": json.dumps(TOY | {"cells": [cell("x = 1")], "metadata": {}}),
        "<b>kit/toy.ipynb": good, "ada/.ipynb_checkpoints/toy-checkpoint.ipynb": good,
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "lea" / "toy.ipynb").mkdir(parents=True)
    rows = grade(folder, toy, Limits(seconds=5.0), jobs=2)
    points = {line["student"]: (line["points"], line["out_of"]) for line in totals(rows)}
    full = {"ada", "ben", "hal", "<b>kit"}
    assert {student for student, found in points.items() if found == (10, 10)} == full
    assert {student for student, found in points.items() if found == (0, 0)} == {
        "cy",
        "dee",
        "eve",
        "fay",
        "gus",
        "ivy",
        "lea",
    }
    said = {row.student: row.message for row in rows}
    assert "broken JSON" in said["cy"] and "belongs to no assignment" in said["ivy"] and "toy" in said["ivy"]
    assert "no notebook" in said["gus"]
    table, page = write_tables(rows, tmp_path / "grades")
    with open(table, newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["points"]) for line in lines if line["student"] == "hal"] == [2, 3, 5]
    html = page.read_text()
    assert "&lt;b&gt;kit" in html and "<b>kit" not in html and "10 of 10" in html


def test_a_name_that_a_spreadsheet_would_run_is_quoted(toy, tmp_path):
    (tmp_path / "class").mkdir()
    (tmp_path / "class/=1+1.ipynb").write_text("{}")
    table, _ = write_tables(grade(tmp_path / "class", toy), tmp_path / "grades")
    assert table.read_text().splitlines()[1].startswith("'=1+1,")


def test_a_submission_sees_no_environment_of_the_grader(graded, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hush")
    spying = "import os\ndef double(x):\n    assert 'SECRET_KEY' not in os.environ, 'seen'\n    return 2 * x"
    assert graded(write(Q1, spying)) == ALL


# copies


def test_student_copies_of_every_source(tmp_path):
    """Neither solutions nor hidden tests nor outputs; checks stay; the whole is what Jupyter reads."""
    nbformat = pytest.importorskip("nbformat")
    out = tmp_path / "out"
    written = assign(out, NOTEBOOKS, instructor=True)
    assert {path.name for path in GRADED} <= {path.name for path in written["student"]}
    for path in written["student"]:
        nbformat.validate(nbformat.read(path, as_version=4))
        text = path.read_text()
        assert not [mark for mark in (*SOLUTION, *HIDDEN, "](../data") if mark in text]
        original = read_notebook(NOTEBOOKS / path.relative_to(out / "student"))
        copied = read_notebook(path)
        assert [one["cell_type"] for one in copied["cells"]] == [one["cell_type"] for one in original["cells"]]
        assert all(not one["outputs"] and one["execution_count"] is None for one in copied["cells"] if "outputs" in one)
        stubs = sum(source(one).count("raise NotImplementedError()") for one in copied["cells"])
        assert stubs == sum(source(one).count(SOLUTION[0]) for one in original["cells"] if one["cell_type"] == "code")
        for part in parts(original, str(path)):
            solved_lines = _region_lines(source(part.cell), SOLUTION) + _region_lines(source(part.cell), HIDDEN)
            kept = [line for line in source(part.cell).split("\n") if line not in solved_lines]
            (copied_cell,) = (one for one in copied["cells"] if one.get("id") == part.cell["id"])
            assert set(kept) - set(source(copied_cell).split("\n")) <= {
                line for line in kept if "BEGIN" in line or "END" in line or "](../" in line
            }
    for path in written["instructor"]:
        nbformat.validate(nbformat.read(path, as_version=4))
        assert SOLUTION[0] in path.read_text()


def _region_lines(text: str, region: tuple[str, str]) -> list[str]:
    pattern = rf"^[^\n]*{region[0]}[^\n]*\n(.*?)^[^\n]*{region[1]}"
    return [line for block in re.findall(pattern, text, re.DOTALL | re.MULTILINE) for line in block.split("\n")]


def test_running_a_student_copy_stops_at_the_first_exercise(toy, tmp_path):
    assign(tmp_path / "out", toy)
    names: dict = {}
    ran = []
    with pytest.raises(NotImplementedError):
        for one in read_notebook(tmp_path / "out/toy.ipynb")["cells"]:
            if one["cell_type"] == "code":
                ran.append(source(one).split("\n")[0])
                exec(source(one) + ("\ndouble(1)" if "Check 1" in source(one) else ""), names)
    assert ran[-1].startswith("# Check 1")


@pytest.mark.parametrize("path", [NOTEBOOKS / "00_start_here.ipynb", *GRADED], ids=lambda path: path.stem)
def test_a_shipped_student_copy_stops_at_its_first_exercise(path, tmp_path, monkeypatch):
    """What comes before runs, and the message is not one about a solution that is gone."""
    (tmp_path / "source").mkdir()
    shutil.copy(path, tmp_path / "source")
    assign(tmp_path / "out", tmp_path / "source")
    monkeypatch.chdir(ROOT)
    cells = [source(one) for one in read_notebook(tmp_path / "out" / path.name)["cells"] if one["cell_type"] == "code"]
    names: dict = {"__name__": "__main__", "display": print}
    stubs = 0
    with pytest.raises(NotImplementedError):
        for text in cells:
            stubs += "raise NotImplementedError()" in text
            exec(text.replace("%matplotlib inline", ""), names)
    assert stubs == 1, "it went on after the first exercise"


@pytest.mark.parametrize(
    "cells, words",
    [
        ([cell("# BEGIN SOLUTION\nx = 1")], "without its END SOLUTION"),
        ([cell("# BEGIN SOLUTION\n# BEGIN SOLUTION\nx = 1\n# END SOLUTION")], "second BEGIN SOLUTION"),
        ([cell("x = 1 # BEGIN SOLUTION\n# END SOLUTION"), cell("y = 2\n# END HIDDEN TESTS")], "without its BEGIN"),
        ([cell("# BEGIN SOLUTION\n# END SOLUTION\n# BEGIN HIDDEN TESTS\n# END HIDDEN TESTS")], "cell 1"),
        ([cell("x = 1")], "nothing to assign"),
    ],
)
def test_broken_sources_are_refused_and_nothing_is_written(tmp_path, cells, words):
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/bad.ipynb").write_text(json.dumps(TOY | {"cells": cells}))
    with pytest.raises(DataError, match=words):
        assign(tmp_path / "out", tmp_path / "sources")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sources"]


def test_the_command_line(toy, tmp_path, monkeypatch, capsys):
    from minivllava import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["minivllava", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    code, out, _ = run("assign", tmp_path / "out", "--source", toy, "--instructor")
    assert code == 0 and "out/student/toy.ipynb" in out and "out/instructor/toy.ipynb" in out
    code, _, err = run("assign", tmp_path / "out", "--source", toy)
    assert code == 2 and "is there already" in err
    code, out, _ = run("grade", tmp_path / "out" / "instructor", "--source", toy, "--out", tmp_path / "grades")
    assert code == 0 and "10 of 10" in out and (tmp_path / "grades/grades.html").exists()
    monkeypatch.chdir(tmp_path / "out" / "student")
    code, out, _ = run("grade", ".", "--source", toy)
    assert code == 0 and "0 of 10" in out and (tmp_path / "out/student-grades/grades.csv").exists()
    for place in ("class.2024/ada.ipynb", "class.2025/ada.ipynb"):
        (tmp_path / place).parent.mkdir()
        shutil.copy(tmp_path / "out/student/toy.ipynb", tmp_path / place)
        assert run("grade", (tmp_path / place).parent, "--source", toy)[0] == 0
    assert run("grade", tmp_path / "class.2025/ada.ipynb", "--source", toy)[0] == 0
    tables = {str(table.parent.relative_to(tmp_path)) for table in tmp_path.glob("class*/**/grades.csv")}
    assert tables == {"class.2024-grades", "class.2025-grades", "class.2025/ada-grades"}
    for arguments, words in (
        (("grade", tmp_path / "nowhere", "--source", toy), "does not exist"),
        (("grade", tmp_path / "grades", "--source", toy), "no notebook"),
        (("grade", toy, "--source", tmp_path / "nowhere"), "--source"),
        (("grade", toy, "--source", tmp_path / "grades"), "nothing can be graded"),
        (("assign", tmp_path / "new", "--source", tmp_path / "nowhere"), "--source"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and words in err and len(err.strip().split("\n")) == 1, err


# the graded assignments


def test_each_assignment_has_its_questions_points_and_minutes():
    assert len(GRADED) >= 4
    for path in GRADED:
        notebook = read_notebook(path)
        text = "\n".join(source(one) for one in notebook["cells"] if one["cell_type"] == "markdown")
        headers = re.findall(r"## Question (\d): .* \((\d+) points, (easy|medium|hard), (\d+) minutes\)", text)
        tests = [part for part in parts(notebook, path.name) if part.role == "test"]
        assert 3 <= len(headers) == len(tests) <= 5
        assert [int(header[1]) for header in headers] == [test.points for test in tests]
        assert f"| Points | {sum(test.points for test in tests)}, in {len(tests)} questions" in text
        assert all(HIDDEN[0] in source(test.cell) for test in tests)
        questions = [one for one in map(source, notebook["cells"]) if re.match(r"## Question \d", one)]
        assert all("<details><summary>Hint" in one for one in questions), "each question has a hint that is folded away"
        assert "You will be able to" in text and "Where this differs from Video-LLaVA" in text


@pytest.fixture(scope="module")
def played():
    """played(name) -> (parts, namespace before each part) of an assignment, run once up to its last test."""
    done = {}

    def play(name: str):
        if name not in done:
            notebook = read_notebook(NOTEBOOKS / "assignments" / f"{name}.ipynb")
            names: dict = {"__name__": "__main__", "display": print}
            framework, before = parts(notebook, name), []
            last = max(n for n, part in enumerate(framework) if part.role == "test")
            needed = _needed(framework[: last + 1])
            for part in framework[: last + 1]:
                before.append(dict(names))
                if part.cell["cell_type"] == "code" and part.name in needed:
                    exec(compile(parsed(source(part.cell)), f"<{part.name}>", "exec"), names)
            done[name] = framework, before
        return done[name]

    return play


def _needed(framework) -> set[str]:
    """Answers, tests, and of the given cells those that no tag leaves out."""
    tagged = {part.name for part in framework if "not-graded" in part.cell.get("metadata", {}).get("tags", [])}
    return {part.name for part in framework} - tagged


def planted():
    return sorted(path.relative_to(SNIPPETS) for path in SNIPPETS.rglob("*.py"))


@pytest.mark.parametrize("snippet", planted(), ids=str)
def test_planted_answers(played, snippet):
    """Right ones pass their question's checks; wrong ones fail them, and the message says why (`# says: ...`)."""
    question, verdict, _ = snippet.stem.split("_", 2)
    framework, before = played(snippet.parent.name)
    place = next(n for n, part in enumerate(framework) if part.role == "answer" and part.name == question)
    (test,) = (part for part in framework if part.role == "test" and part.name.startswith(question))
    names, text = dict(before[place]), (SNIPPETS / snippet).read_text()
    exec(compile(text, snippet.name, "exec"), names)

    def judge():
        for part in framework[place + 1 : framework.index(test) + 1]:
            if part.cell["cell_type"] == "code":
                exec(compile(source(part.cell), f"<{part.name}>", "exec"), names)

    import torch

    torch.manual_seed(0)
    if verdict == "right":
        judge()
        return
    (says,) = re.findall(r"^# says: (.*)$", text, re.MULTILINE)
    with pytest.raises((AssertionError, IndexError, RuntimeError, ValueError)) as error:
        judge()
    assert isinstance(error.value, AssertionError) and says in str(error.value), str(error.value)


@pytest.mark.parametrize("path", GRADED, ids=lambda path: path.stem)
def test_every_question_has_planted_answers(path):
    for part in parts(read_notebook(path), path.name):
        if part.role == "answer":
            verdicts = [
                s.stem.split("_")[1]
                for s in planted()
                if s.parent.name == path.stem and s.stem.startswith(part.name + "_")
            ]
            assert verdicts.count("wrong") >= 3 and verdicts.count("right") >= 2, f"{path.stem} {part.name}: {verdicts}"


def test_cells_with_magics_tell_what_is_imported_before_memory_is_limited():
    cells = ["%matplotlib inline\nimport numpy as np\nfrom minivllava.chat import chat", "not a program", "x = '\0'"]
    assert imported_modules(cells) == ["numpy", "minivllava.chat"]


@pytest.mark.slow
@pytest.mark.parametrize("path", [NOTEBOOKS / "02_video_encoder.ipynb", *GRADED], ids=lambda path: path.stem)
def test_the_real_assignments_are_graded_in_their_own_process(path, tmp_path):
    """The solution earns all points; with the first answer wrong, all but the first question's; a blank copy none.

    None of them is told to have changed what it has not.
    """
    original = read_notebook(path)
    for student, spoilt in (("ada", None), ("ben", "q1"), ("cy", None)):
        submission = student_copy(original, path) if student == "cy" else filled(original, path)
        for part in parts(original, path.name):
            if part.name == spoilt:
                (one,) = (one for one in submission["cells"] if one["id"] == part.cell["id"])
                one["source"] = "raise ValueError('no idea')"
        (tmp_path / student).mkdir()
        (tmp_path / student / path.name).write_text(json.dumps(submission))
    rows = grade(tmp_path, path.parent, Limits())
    for row in rows:
        wanted = 0 if row.student == "cy" or (row.student, row.question) == ("ben", "q1") else row.out_of
        assert row.points == wanted and "changed by the submission" not in row.message, row
    assert {row.student for row in rows} == {"ada", "ben", "cy"}


# nbgrader


BESIDE_PYTHON = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
NBGRADER = os.environ.get("MINIVLLAVA_NBGRADER") or shutil.which("nbgrader", path=BESIDE_PYTHON)


@pytest.mark.slow
@pytest.mark.skipif(NBGRADER is None, reason="nbgrader is not installed: pip install '.[grading]'")
def test_one_assignment_through_nbgrader(tmp_path):
    """nbgrader makes the same student copy from ours, and grades the copies that `assign` wrote."""
    name = "tubelets"
    alone = tmp_path / "sources"
    alone.mkdir()
    shutil.copy(NOTEBOOKS / "assignments" / f"{name}.ipynb", alone)
    written = assign(tmp_path / "out", alone, instructor=True)
    course = tmp_path / "course"
    original = read_notebook(alone / f"{name}.ipynb")
    handed_in = {
        "ada": filled(original, Path(f"{name}.ipynb")),
        "ben": read_notebook(written["student"][0]),
    }
    (course / "source" / name).mkdir(parents=True)
    shutil.copy(written["instructor"][0], course / "source" / name)
    for student, notebook in handed_in.items():
        folder = course / "submitted" / student / name
        folder.mkdir(parents=True)
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook))
    (course / "nbgrader_config.py").write_text(
        'c = get_config()\nc.CourseDirectory.course_id = "minivllava"\nc.Exchange.root = "."\n'
        "c.ExecutePreprocessor.timeout = 300\n"
    )

    def nbgrader(*arguments):
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PATH": f"{Path(NBGRADER).parent}{os.pathsep}{os.environ['PATH']}",  # it calls alembic by name
            "JUPYTER_PREFER_ENV_PATH": "1",
        }
        done = subprocess.run([NBGRADER, *arguments], cwd=course, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]

    nbgrader("generate_assignment", name, "--create")
    released = read_notebook(course / "release" / name / f"{name}.ipynb")
    assert [source(one) for one in released["cells"]] == [source(one) for one in handed_in["ben"]["cells"]]
    nbgrader("autograde", name, "--create")
    nbgrader("export")
    with open(course / "grades.csv", newline="") as file:
        scores = {line["student_id"]: float(line["score"]) for line in csv.DictReader(file)}
    points = sum(part.points for part in parts(original, name) if part.role == "test")
    assert scores == {"ada": points, "ben": 0.0}


def test_copies_name_files_that_a_link_would_not_reach():
    text = "Read [how](../data/README.md), then [08](08_ablations.ipynb) and [POPE](https://arxiv.org/abs/2305.10355)."
    notebook = {"cells": [{"cell_type": "markdown", "metadata": {}, "source": text}], "metadata": {}}
    (cell,) = student_copy(notebook, Path("07.ipynb"))["cells"]
    assert cell["source"] == text.replace("[how](../data/README.md)", "how (`data/README.md` in the repository)")
    (inside,) = student_copy(notebook, Path("assignments/toy.ipynb"))["cells"]
    assert inside["source"] == text  # notebooks/data: inside the folder that is copied
