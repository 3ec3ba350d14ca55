"""The process that runs one submission: steps in, one line of JSON for each event out.

    python -P -m minivllava.assignments.worker      with the job as JSON on standard input

A job: `steps` (see merge.py), `done` (step number -> why it must not run again), `seconds` for each step,
`megabytes`, `folder`, and a `token` that every line carries, so that what a submission prints is not taken for
a result. Events: {"start": i}, then {"end": i, "error": ... or null, "seconds": s}, and {"finished": true}.
"""

import ast
import contextlib
import importlib
import json
import os
import random
import sys
import time
import types
from pathlib import Path

from minivllava.assignments.guard import (
    Originals,
    TimeIsUp,
    importable,
    limit_memory,
    lock_down,
    start_clock,
    stop_clock,
)

UNREADABLE = (SyntaxError, ValueError, MemoryError, RecursionError)  # what Python raises of cells that are no programs
WATCHED = ("math", "json", "numpy", "torch", "torch._tensor", "torch.nn.functional", "torch.testing",
           "torch.nn.modules.module", "einops", "minivllava.assignments.checks")  # fmt: skip


class Session:
    """The namespace that all steps share, and what is known of them."""

    def __init__(self, job: dict, originals: Originals):
        self.steps, self.done = job["steps"], {int(i): why for i, why in job["done"].items()}
        self.seconds, self.megabytes = job["seconds"], job["megabytes"]
        self.originals = originals
        self.module = types.ModuleType("__main__")
        sys.modules["__main__"] = self.module
        self.names = vars(self.module)
        self.names["display"] = print
        self.given: dict[str, object] = {}  # what the source's own cells bound
        self.errors: dict[str, str] = {}  # answer cell -> why it stopped
        self.answers = {step["name"]: step for step in self.steps if step["kind"] == "answer"}
        self.defined = {name: _top_names(step["reference"]) for name, step in self.answers.items()}
        self.free = set().union(*self.defined.values())  # names that answers are there to bind
        self.failed: set[str] = set()  # answers whose test failed
        self.last_test = {name: i for i, step in enumerate(self.steps) for name in step["answers"]}
        self.trouble: list[str] = []  # cells of the source that stopped
        self.changed: set[str] = set()  # what the submission's cells since the last test changed of the source's
        self.tested = False  # whether a test has told of it

    def run(self, number: int) -> str | None:
        """Runs one step. Returns what went wrong, or None."""
        step = self.steps[number]
        _seed()
        if step["kind"] in ("answer", "given", "test"):
            self._carry_on(number)
        if step["kind"] == "test":
            return self._test(step, self.done.get(number))
        if step["kind"] == "given":
            self._put_back()
            if number in self.done:
                return self.done[number]
            before = dict(self.names)
            error = self._execute(step)
            self.given |= {k: v for k, v in self.names.items() if k not in before or before[k] is not v}
            self.trouble += [f"{step['name']}: {error}"] if error else []
            return error
        error = self.done.get(number)
        if error is None and step["missing"]:
            error = "the answer cell was deleted or lost its id"
        error = error or self._submitted(step)
        if error is not None and step["kind"] == "answer":
            self.errors[step["name"]] = error
        return error

    def _submitted(self, step: dict) -> str | None:
        """Runs a cell of the submission, and takes down what that cell alone changed."""
        self.originals.restore()
        if self.tested:
            self.changed, self.tested = set(), False
        before = dict(self.names)
        error = self._execute(step)
        bound = (name for name in self.given.keys() - self.free if not name.startswith("__"))
        self.changed |= {name for name in bound if self.names.get(name) is not before.get(name)}
        return error

    def _test(self, step: dict, stopped: str | None) -> str | None:
        self._put_back()
        self.tested = True
        absent = {name: answer for answer in step["answers"] for name in self.defined[answer]}
        absent = {name: answer for name, answer in absent.items() if name not in self.names}
        error = stopped or self._execute(step)
        if error is None:
            return None
        self.failed |= set(step["answers"])
        reasons = [f"{answer} stopped: {self.errors[answer]}" for answer in step["answers"] if answer in self.errors]
        if "NameError" in error and absent:
            error = self._renamed(step, list(absent))
        elif "NameError" in error and self.trouble:
            error += f"; a cell of the assignment itself had stopped: {self.trouble[0]}"
        reasons.append(error)
        if self.changed:
            reasons.append(f"(changed by the submission and put back: {', '.join(sorted(self.changed)[:5])})")
        return "; ".join(reasons)

    def _renamed(self, test: dict, absent: list[str]) -> str:
        written = [self.answers[name]["source"] for name in test["answers"]]
        instead = sorted(set().union(*map(_top_names, written)) - self.free)
        hint = f" The answer cell defines {', '.join(instead)}." if instead else ""
        return f"{', '.join(absent)} is not defined: was it renamed or deleted?{hint}"

    def _carry_on(self, number: int):
        """Once all tests of a question are through, the source's solution stands in for one that failed.

        Its tests run again with it, for the names that they bind, which later cells may use.
        """
        for answer in sorted(name for name in self.failed if self.last_test[name] < number):
            self.failed.discard(answer)
            step = self.answers[answer]
            self._execute(step | {"kind": "given", "source": step["reference"]})
            self.originals.restore()
            for test in self.steps[:number]:
                if answer in test["answers"]:
                    self._execute(test)

    def _put_back(self):
        """Restores names that the source bound and the submission, without being asked to, bound anew."""
        self.names.update({name: value for name, value in self.given.items() if name not in self.free})

    def _execute(self, step: dict) -> str | None:
        try:
            code = compile(parsed(step["source"]), f"<cell {step['name']}>", "exec")
        except UNREADABLE as error:
            return _told(error, step["name"])
        try:
            with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                start_clock(self.seconds)
                try:
                    exec(code, self.names)
                finally:
                    stop_clock()
                    if step["kind"] in ("answer", "extra"):
                        self.changed.update(self.originals.restore())
        except BaseException as error:  # SystemExit and TimeIsUp too: nothing that a cell does ends the grading
            if isinstance(error, TimeIsUp):
                return f"took longer than {self.seconds:g} s and was stopped: is there an endless loop?"
            if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
                return f"asked for more than {self.megabytes} MB of memory"
            with contextlib.suppress(BaseException):
                return _told(error, step["name"])
            return f"raised {type(error).__name__}"
        return None


def parsed(source: str) -> ast.Module:
    """The syntax tree of a cell. Lines of shell and magic commands, which only Jupyter knows, are left out."""
    try:
        return ast.parse(source)
    except SyntaxError:
        lines = source.split("\n")
        plain = ["" if line.lstrip()[:1] in ("%", "!") else line for line in lines]
        if plain == lines:
            raise
        return ast.parse("\n".join(plain))


def _told(error: BaseException, name: str) -> str:
    """An error as the table tells it: what, and in which line of the cell."""
    if isinstance(error, AssertionError) and error.args:
        return str(error)
    if isinstance(error, NotImplementedError):
        return "not answered yet (NotImplementedError)"
    text = (error.msg if isinstance(error, SyntaxError) else str(error)).split("\n")[0]
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith("<cell "):
            line, name = trace.tb_lineno, file[6:-1]
        trace = trace.tb_next
    where = f" (line {line} of {name})" if line else ""
    if isinstance(error, SystemExit):
        return f"tried to end the program (SystemExit){where}"
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


def _top_names(source: str) -> set[str]:
    """Functions, classes and variables that a solution binds at its top level."""
    try:
        tree = parsed(source)
    except UNREADABLE:
        return set()
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    return names | {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


def imported_modules(sources: list[str]) -> list[str]:
    """Modules that the source's cells import."""
    names: list[str] = []
    for text in sources:
        with contextlib.suppress(*UNREADABLE):
            for node in ast.walk(parsed(text)):
                if isinstance(node, ast.Import):
                    names += [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.append(node.module)
    return list(dict.fromkeys(names))


def _seed():
    """The same random numbers in each step, whatever ran before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def main():
    """Runs the job on standard input."""
    job = json.loads(sys.stdin.readline())
    token = job.pop("token")
    results = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.chdir(job["folder"])

    def send(event: dict):
        results.write(f"{token} {json.dumps(event)}\n")
        results.flush()

    trusted = [step["source"] for step in job["steps"] if step["kind"] in ("given", "test")]
    originals = Originals()
    imports = importable(imported_modules(trusted), importlib.import_module)
    if "torch" in sys.modules:  # its compiler wraps functions of torch as soon as anything imports it
        importable(["torch._dynamo"], importlib.import_module)
    used = [sys.modules[name] for name in WATCHED if name in sys.modules]
    own = [m for m in imports if m.__name__.startswith("minivllava")]
    for module in (*used, *own):
        originals.remember(module)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    session = Session(job, originals)
    limit_memory(job["megabytes"])
    lock_down(Path(job["folder"]))
    for number in range(len(session.steps)):
        send({"start": number})
        began = time.perf_counter()
        error = session.run(number)
        error = error if error is None else error[:2000]
        send({"end": number, "error": error, "seconds": time.perf_counter() - began})
    send({"finished": True})
    os._exit(0)  # no exit handler and no thread of the submission outlives it


if __name__ == "__main__":
    main()
