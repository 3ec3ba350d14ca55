"""Grading a folder of submissions (`minivllava grade`): each in its own process, points and messages in rows.

    SUBMISSIONS/ada/tubelets.ipynb      one folder for each student, any number of notebooks in each, or
    SUBMISSIONS/ada.ipynb               one notebook for each student

Set-up and tests come from the source notebooks, never from the submission. The process has a clean
environment, a working folder of its own, and limits on time and memory (guard.py). When a cell ends or hangs the
process, grading starts again without that cell, so that every other question still gets its points.
"""

import json
import os
import secrets
import selectors
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from minivllava.assignments.merge import merge
from minivllava.assignments.notebook import notebooks_in, parts, read_notebook
from minivllava.errors import DataError

START = 120.0  # seconds to import what the assignment imports
KEPT = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "LD_LIBRARY_PATH")  # of the environment


@dataclass(frozen=True)
class Limits:
    """What a submission may take."""

    seconds: float = 60.0  # for each cell
    megabytes: int = 2000  # beyond what the imports take
    grace: float = 10.0  # seconds beyond its limit in which a cell may stop by itself before its process is killed


@dataclass(frozen=True)
class Row:
    """One question of one submission."""

    student: str
    assignment: str
    file: str
    question: str
    points: int
    out_of: int
    seconds: float
    message: str


@dataclass(frozen=True)
class Source:
    """An assignment with its answers and tests, which submissions are graded against."""

    name: str
    notebook: dict

    def tests(self) -> list:
        """Its tests, in order."""
        return [part for part in parts(self.notebook, self.name) if part.role == "test"]


def grade(
    submissions: str | Path,
    sources: str | Path,
    limits: Limits = Limits(),  # noqa: B008
    jobs: int = 1,
) -> list[Row]:
    """Grades every notebook under `submissions` against its source under `sources`. A row for each question.

    jobs: how many submissions at a time. Raises DataError for folders that are not there or hold no notebook, and for
    two sources of one name; what is wrong with one submission is told in its row.
    """
    submissions = Path(submissions)
    known = load_sources(sources)
    if not submissions.exists():
        raise DataError(f"{submissions} does not exist: name the folder with the students' notebooks.")
    files = list(notebooks_in(submissions)) if submissions.is_dir() else [submissions]
    lonely = [f for f in sorted(submissions.iterdir()) if _without_notebook(f)] if submissions.is_dir() else []
    if not files and not lonely:
        raise DataError(f"{submissions} holds no notebook: give each student a folder, or one .ipynb file.")
    root = submissions if submissions.is_dir() else submissions.parent
    rows = [_refused(folder.name, folder.name, "there is no notebook in this folder") for folder in lonely]
    with tempfile.TemporaryDirectory(prefix="minivllava-grade-") as scratch:
        with ThreadPoolExecutor(max(1, jobs)) as pool:
            for found in pool.map(lambda file: grade_file(file, root, known, limits, Path(scratch)), files):
                rows += found
    return sorted(rows, key=lambda row: (row.student, row.assignment, row.file))


def _without_notebook(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".") and not any(notebooks_in(path))


def load_sources(folder: str | Path) -> dict[str, Source]:
    """The notebooks under a folder that have tests, by their name without suffix.

    Raises DataError where there is none, and where two have the same name.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is no folder: name the one that holds the source notebooks with --source.")
    found: dict[str, Source] = {}
    files: dict[str, Path] = {}
    for path in notebooks_in(folder):
        one = Source(path.stem, read_notebook(path))
        if not one.tests():
            continue
        if one.name in found:
            raise DataError(
                f"{files[one.name]} and {path} are two sources of one name: keep students' and other copies outside "
                f"{folder}."
            )
        found[one.name], files[one.name] = one, path
    if not found:
        raise DataError(f"{folder} holds no notebook with tests: nothing can be graded against it.")
    return found


def grade_file(file: Path, root: Path, known: dict[str, Source], limits: Limits, scratch: Path) -> list[Row]:
    """The rows of one submission, whatever is wrong with it."""
    inside = file.relative_to(root)
    student = inside.parts[0] if len(inside.parts) > 1 else file.stem
    try:
        notebook = read_notebook(file)
        source = recognise(notebook, file, known)
        steps = merge(source.notebook, notebook, source.name)
    except DataError as error:
        return [_refused(student, str(inside), str(error))]
    except Exception as error:  # whatever stands in a student's file, the others still get their grades
        message = f"the notebook is damaged ({type(error).__name__}: {error}): open it in Jupyter and save it again"
        return [_refused(student, str(inside), message)]
    results = run_steps(steps, limits, scratch)
    return [
        Row(
            student, source.name, str(inside), step["question"], step["points"] if error is None else 0,
            step["points"], round(seconds, 1), "" if error is None else " ".join(error.split())[:600],
        )
        for step, (error, seconds) in zip(steps, results, strict=True) if step["kind"] == "test"
    ]  # fmt: skip


def _refused(student: str, file: str, why: str) -> Row:
    return Row(student, "", file, "", 0, 0, 0.0, why)


def recognise(notebook: dict, file: Path, known: dict[str, Source]) -> Source:
    """The source that a submission answers: by its metadata, else its file's name, else its cells."""
    about = notebook.get("metadata", {})
    about = about.get("minivllava", {}) if isinstance(about, dict) else {}
    name = about.get("assignment") if isinstance(about, dict) else None
    if isinstance(name, str) and name in known:
        return known[name]
    named = [name for name in known if name.lower() in file.stem.lower()]
    if named:
        return known[max(named, key=len)]
    ids = {cell.get("id") for cell in notebook["cells"]} - {None}
    shared = {name: len(ids & {cell.get("id") for cell in one.notebook["cells"]}) for name, one in known.items()}
    best = max(shared, key=shared.__getitem__)
    if not shared[best]:
        raise DataError(
            f"{file.name} belongs to no assignment: hand in the student copy, or put one of these names into the "
            f"file's name: {', '.join(known)}."
        )
    return known[best]


def run_steps(steps: list[dict], limits: Limits, scratch: Path) -> list[tuple[str | None, float]]:
    """(what went wrong or None, seconds) of every step, over as many processes as it takes."""
    results: dict[int, tuple[str | None, float]] = {}
    done: dict[int, str] = {}
    for _ in range(len(steps) + 1):
        at, why = _run_once(steps, done, limits, scratch, results)
        if why is None:
            break
        if at is None:  # before any cell: nothing can be skipped
            return [results.get(i, (why, 0.0)) for i in range(len(steps))]
        done[at] = why
    return [results.get(i, ("was not reached", 0.0)) for i in range(len(steps))]


def _run_once(steps, done, limits: Limits, scratch: Path, results: dict) -> tuple[int | None, str | None]:
    """Runs all steps in one process. Returns (the step that ended it, how), or (_, None) when all ran."""
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as folder:
        job = {"steps": steps, "done": done, "seconds": limits.seconds, "megabytes": limits.megabytes,
               "folder": folder, "token": token}  # fmt: skip
        command = [sys.executable, "-P", "-m", "minivllava.assignments.worker"]
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(folder, scratch), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            at, finished = _follow(process, job, limits, results)
        finally:
            _stop(process)
        if finished is True:
            return at, None
        if finished == "late":
            return at, f"took longer than {limits.seconds:g} s and did not stop: is there an endless loop?"
        if at is None:
            said = (process.stderr.read() or b"").decode(errors="replace").strip().split("\n")[-1]
            return None, f"the grader could not start: {said or 'the process ended'}"
        return at, _ending(process.returncode)


def _follow(process: subprocess.Popen, job: dict, limits: Limits, results: dict) -> tuple[int | None, bool | str]:
    """Hands over the job and reads events. (the step it was in, True | False | "late")."""
    at: int | None = None
    token = job["token"].encode()
    try:
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.close()
    except OSError:
        return None, False
    reader = selectors.DefaultSelector()
    reader.register(process.stdout, selectors.EVENT_READ)
    pending, deadline = b"", time.monotonic() + START
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not reader.select(left):
            return at, "late"
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            process.wait()
            return at, False
        *lines, pending = (pending + piece).split(b"\n")
        pending = pending[-(1 << 20) :]
        for line in lines:
            if not line.startswith(token + b" "):
                continue
            event = json.loads(line[len(token) + 1 :])
            if "start" in event:
                at = event["start"]
                # a step may take longer than its own limit: where it first runs a solution that stands in
                deadline = time.monotonic() + 2 * limits.seconds + limits.grace
            elif "end" in event:
                results.setdefault(event["end"], (event["error"], event["seconds"]))
            elif event.get("finished"):
                return at, True


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"crashed the Python process (signal {-code}): out of memory, or endless recursion?"
    return f"ended the Python process (exit code {code})"


def _stop(process: subprocess.Popen):
    """Kills the process and all that it started."""
    try:
        os.killpg(process.pid, 9)
    except (OSError, AttributeError):
        process.kill()
    process.wait()
    process.stdout.close()


def _environment(folder: str, scratch: Path) -> dict[str, str]:
    """A clean environment: no keys, no proxies, no caches of the user; one core; no display; no GPU."""
    import minivllava
    from minivllava.data.build import cache_dir

    package = Path(minivllava.__file__).resolve().parent.parent
    paths = [str(package), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    drawing = scratch / "matplotlib"
    return {name: os.environ[name] for name in KEPT if name in os.environ} | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "HOME": folder,
        "MINIVLLAVA_CACHE": str(cache_dir()),  # to read: nothing can be written there
        "TMPDIR": folder,
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": str(drawing),
        "CUDA_VISIBLE_DEVICES": "",
        **{name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
    }
