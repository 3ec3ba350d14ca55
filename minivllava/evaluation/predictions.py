"""Files of questions and answers: read with their lines, joined by id, written as they come. No torch.

read_rows -> join: whatever is wrong with a file (lines that are no JSON, missing fields, ids that are doubled,
missing or belong to no question) is collected in `Problems` and reported at once, with file and line.
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from minivllava.errors import DataError
from minivllava.files import holds_half_character

ID_FIELDS = ("question_id", "questionId", "id", "index")
TEXT_FIELDS = ("text", "pred", "prediction", "answer", "response")
SHOWN = 20  # problems that a message lists before it only counts


class Row(NamedTuple):
    """One record of a file, and its place in the file ("answers.jsonl:12")."""

    values: dict
    where: str


@dataclass(frozen=True)
class Question:
    """One question to a model: how its answer is found again, the prompt, and what is shown.

    media: (kind, file or the bytes of an image), or None; its placeholder comes before the prompt, on a line of
    its own. row: the fields that its line in the answers file begins with.
    """

    key: str
    prompt: str
    media: tuple[str, Path | bytes] | None
    row: dict


@dataclass
class Problems:
    """What is wrong with files of questions and answers.

    With `keep_going` nothing is raised: broken and unknown lines are left out, of doubled ids the last counts,
    missing answers count as wrong; and the list goes into the results. With `partial` only a part was asked: what
    has no answer is left out, and is no problem. advice: what to do about them.
    """

    keep_going: bool = False
    partial: bool = False
    advice: str = "Mend them and run it again."
    found: list[str] = field(default_factory=list)

    def add(self, problem: str):
        self.found.append(problem)

    def check(self, advice: str = ""):
        """Raises DataError with the problems found so far, unless `keep_going`. advice: another one than usual."""
        if self.found and not self.keep_going:
            listed = "\n  ".join(self.found[:SHOWN])
            more = f"\n  and {len(self.found) - SHOWN:,} more" if len(self.found) > SHOWN else ""
            raise DataError(f"{len(self.found):,} problem(s):\n  {listed}{more}\n{advice or self.advice}")


def read_rows(path: str | Path, problems: Problems, field: str | None = None, keyed: str | None = None) -> list[Row]:
    """The records of a file, each with its line: JSON lines, a JSON list, or a table (.tsv, .csv).

    field: a JSON object may hold the list there, as {"annotations": [...]}. keyed: a JSON object may hold records
    by id, which is put into this field of each; an entry that is no object goes into the field "value".

    Lines that are no JSON object, or hold what is no text, become problems. Raises DataError for a file that cannot be
    read, holds nothing, or whose JSON breaks in a way that hides the records after it.
    """
    path = Path(path)
    if path.suffix in (".tsv", ".csv"):
        return _read_table(path)
    text = read_text(path)
    if path.suffix == ".jsonl":
        found = _lines(text, path, problems)
    elif text.lstrip()[:1] == "[":
        found = ((f"{path}:{line}", value) for line, _, value in _members(text, path))
    elif (whole := _object(text, path)) is None:
        found = _lines(text, path, problems)
    elif field and isinstance(whole.get(field), list):
        found = zip(_places(text, path, field, len(whole[field])), whole[field], strict=True)
    elif keyed and not any(name in whole for name in ID_FIELDS):
        entries = ((f"{path}:{line}", key, value) for line, key, value in _members(text, path))
        found = ((at, {keyed: key} | (v if isinstance(v, dict) else {"value": v})) for at, key, v in entries)
    else:
        found = [(f"{path}:1", whole)]
    halves = "\\ud" in text or "\\uD" in text  # there may be some
    rows = []
    for where, value in found:
        if not isinstance(value, dict):
            problems.add(f"{where}: {json.dumps(value)[:60]} is no object with fields such as question_id")
        elif halves and holds_half_character(value):
            problems.add(f"{where}: it holds half a character, \\ud..., which is no text")
        else:
            rows.append(Row(value, where))
    if not rows:
        problems.check()
        raise DataError(f"{path} holds no records: name a file of questions or answers.")
    return rows


def read_text(path: str | Path) -> str:
    """A file's text. Raises DataError that names it."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataError(f"{path} cannot be read ({reason}): name a file of questions or answers.") from error


def read_json(path: str | Path):
    """The value that a JSON file holds. Raises DataError that names file and line."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: broken JSON ({error.msg}): write the file again.") from error


def _read_table(path: Path) -> list[Row]:
    """Rows of a tab- or comma-separated table with a header; quoted fields may hold line breaks."""
    csv.field_size_limit(2**31 - 1)  # images in base64 pass the usual 128 KiB
    lines = io.StringIO(read_text(path))  # not splitlines: fields may hold other line breaks
    reader = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")
    rows, line = [], 2
    for values in reader:
        if None in values or None in values.values():
            raise DataError(f"{path}:{line}: the number of fields is not that of the header: write the table again.")
        rows.append(Row(values, f"{path}:{line}"))
        line = reader.line_num + 1
    if not rows:
        raise DataError(f"{path} holds no rows: a header and a line for each question are needed.")
    return rows


def _object(text: str, path: Path) -> dict | None:
    """The one JSON object that a file holds, or None if it holds JSON lines (as some `.json` files do)."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" or any(_is_object(line) for line in text.split("\n")):
            return None
        raise DataError(f"{path}:{error.lineno}: broken JSON ({error.msg}): write the file again.") from error
    if not isinstance(whole, dict):
        raise DataError(f"{path} holds {json.dumps(whole)[:60]}, no records: name a file of questions or answers.")
    return whole


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _lines(text: str, path: Path, problems: Problems) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON may hold other line breaks
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                problems.add(f"{path}:{number}: broken JSON ({error.msg} at column {error.colno}): {line[:60]!r}")


def _members(text: str, path: Path, begin: int = 0, inner: bool = False) -> Iterator[tuple[int, str | None, object]]:
    """(line, key, value) of each element of a JSON list (key None) or each entry of an object, doubled keys too.

    begin: where the list or object begins; inner: more text may follow it.
    """
    decode, space = json.JSONDecoder().raw_decode, re.compile(r"\s*").match
    at = space(text, begin).end()
    closing = {"[": "]", "{": "}"}[text[at]]
    line, counted = 1, 0
    at = space(text, at + 1).end()
    try:
        while text[at : at + 1] != closing:
            line, counted, key = line + text.count("\n", counted, at), at, None
            if closing == "}":
                key, at = decode(text, at)
                at = _expect(":", text, space(text, at).end(), space)
            value, at = decode(text, at)
            yield line, key, value
            at = space(text, at).end()
            if text[at : at + 1] != closing:
                at = _expect(",", text, at, space)
        if not inner and text[at + 1 :].strip():
            raise json.JSONDecodeError("Extra data", text, at + 1)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: broken JSON ({error.msg}): write the file again.") from error


def _places(text: str, path: Path, field: str, count: int) -> list[str]:
    """The place of each element of the list in a field: its line and its number, since whole files are one line."""
    begin = re.search(rf'"{re.escape(field)}"\s*:\s*(?=\[)', text)
    lines = [line for line, _, _ in _members(text, path, begin.end(), inner=True)] if begin else []
    if len(lines) != count:  # another list of that name comes before it
        return [f"{path}: {field}[{number}]" for number in range(count)]
    return [f"{path}:{line}: {field}[{number}]" for number, line in enumerate(lines)]


def _expect(mark: str, text: str, at: int, space: Callable) -> int:
    if text[at : at + 1] != mark:
        raise json.JSONDecodeError(f"Expecting {mark!r}", text, at)
    return space(text, at + 1).end()


def id_of(row: Row, problems: Problems, fields: tuple[str, ...] = ID_FIELDS) -> str | None:
    """A row's id as text (1 and "1" are the same one); None, and a problem, if it has none."""
    for name in fields:
        value = row.values.get(name)
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return str(value)
    problems.add(f"{row.where}: no id: a field {' or '.join(fields)} with text or a whole number is needed")
    return None


def text_of(row: Row, problems: Problems, fields: tuple[str, ...] = TEXT_FIELDS) -> str | None:
    """The first of these fields that a row has; None, and a problem, if there is none or it holds no text."""
    name = next((name for name in fields if name in row.values), None)
    if name is not None and isinstance(row.values[name], str):
        return row.values[name]
    what = f"{name} holds {json.dumps(row.values[name])[:40]}, no text" if name else f"no field {' or '.join(fields)}"
    problems.add(f"{row.where}: {what}")
    return None


def by_id(rows: list[Row], problems: Problems, key: Callable[[Row], str | None] | None = None) -> dict[str, Row]:
    """Rows by their id (or `key`); ids that are doubled become problems, and the last row counts."""
    found: dict[str, Row] = {}
    for row in rows:
        name = key(row) if key else id_of(row, problems)
        if name in found:
            problems.add(f"{row.where}: {name} stands there a second time, after {found[name].where}")
        if name is not None:
            found[name] = row
    return found


def join(
    questions: Mapping[str, Row], answers: Mapping[str, Row], problems: Problems, answers_file: str | Path
) -> dict[str, Row | None]:
    """The answer of each question, by id and in the questions' order; None if there is none.

    Answers to no question and questions without an answer become problems.
    """
    for name, row in answers.items():
        if name not in questions:
            problems.add(f"{row.where}: {name} is the id of no question")
    if problems.partial:
        return {name: answers[name] for name in questions if name in answers}
    for name, row in questions.items():
        if name not in answers:
            problems.add(f"{answers_file}: no answer to {name} ({row.where})")
    return {name: answers.get(name) for name in questions}


def find(folder: str | Path, *names: str) -> Path | None:
    """The first of these files or folders (names or patterns) that lies in a folder; None if none does."""
    return next((path for name in names for path in sorted(Path(folder).glob(name))), None)


def need(folder: str | Path, *names: str) -> Path:
    """As `find`; raises DataError that lists what was looked for."""
    found = find(folder, *names)
    if found is None:
        listed = ", ".join(names[:-1]) + " or " * (len(names) > 1) + names[-1]
        raise DataError(f"{folder} has no {listed}: download it there, or name another folder or file.")
    return found


def read_log(path: str | Path) -> list[dict]:
    """The objects of a JSON-lines file that a run appends to, without a last line that was cut off.

    Raises DataError for a broken line before the last.
    """
    path = Path(path)
    if not path.exists():
        return []
    problems = Problems()
    whole, _, _ = read_text(path).rpartition("\n")  # what follows the last line break was never finished
    rows = [value for _, value in _lines(whole, path, problems)]
    problems.check()
    return rows


def open_log(path: str | Path) -> IO[str]:
    """Opens a JSON-lines file to append to, after cutting off a last line that was not finished.

    What is no valid text (half of a surrogate pair) is written as JSON's escape of it. Raises DataError where the file
    cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            data = path.read_bytes()
            if not data.endswith(b"\n"):
                os.truncate(path, data.rfind(b"\n") + 1)
        # each line reaches the file as it is written
        return open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): name another file or folder.") from error
