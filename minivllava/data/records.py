"""LLaVA-format JSON and a media folder into records, and all that may be wrong with them said before training."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from minivllava.data.conversation import check_turns, visual_kinds
from minivllava.data.media import probe_media
from minivllava.errors import DataError, MediaError
from minivllava.files import holds_half_character

SHOWN = 8  # records that break the format; a file can have thousands


def load_records(files: str | Path | Sequence[str | Path], media: str | Path | None = None):
    """LLaVA-format JSON (or JSON lines) as a `datasets.Dataset`.

    Columns: `id` (str), `images` and `videos` (lists of paths, under `media`, by default the first file's
    folder), `visuals` (paths in the order of the placeholders), `conversations` (list of from/value),
    and `types`, `needs_order` (one per answer), `family` where the embedded world gives them.

    Raises DataError with the file and the record for JSON that cannot be read or breaks the format: wrong
    keys, turns that do not alternate, placeholders that do not match the files.
    """
    records, broken = read_records(files, media)
    refuse_broken(broken)
    return records


def read_records(files: str | Path | Sequence[str | Path], media: str | Path | None = None, words: bool = False):
    """`load_records` without those that break the format, and what is wrong with these: (records, messages).

    words: in a record without files <image> and <video> are words, as they are to the original code: a text may be
    about HTML. Raises DataError for JSON that cannot be read, or if no record is left.
    """
    files = [files] if isinstance(files, str | Path) else list(files)
    media = Path(files[0]).parent if media is None else media
    named = ((f"{file}: record {number}", record) for file in files for number, record in _read(file))
    return _checked(named, media, ", ".join(map(str, files)), words)


def records_of(records: Sequence[dict], media: str | Path):
    """`load_records` of records that lie in memory. Raises DataError as it does."""
    named = ((f"records: record {number}", record) for number, record in enumerate(records))
    table, broken = _checked(named, media, "records")
    refuse_broken(broken)
    return table


def refuse_broken(broken: list[str], fix: str = ""):
    """Raises DataError that says what is wrong with records, if anything."""
    if broken:
        head = f"{len(broken)} records break the format:\n  " if len(broken) > 1 else ""
        more = [f"and {len(broken) - SHOWN} more"] if len(broken) > SHOWN else []
        raise DataError(head + "\n  ".join([*broken[:SHOWN], *more, *([fix] if fix else [])]))


def _checked(named: Iterable[tuple[str, dict]], media: str | Path, source: str, words: bool = False):
    """The table of (what messages call a record, the record), and what is wrong with those that are not in it."""
    from datasets import Dataset, Features, List, Value

    rows, broken = [], []
    for where, record in named:
        try:
            rows.append(_row(record, where, Path(media), words))
        except DataError as error:
            broken.append(str(error))
    if not rows:
        refuse_broken(broken)
        raise DataError(f"{source} holds no records: a list of conversations is needed.")
    turn = {"from": Value("string"), "value": Value("string")}
    text = List(Value("string"))
    columns = Features(
        id=Value("string"), images=text, videos=text, visuals=text, conversations=List(turn), types=text,
        needs_order=List(Value("bool")), family=Value("int64"), where=Value("string"), words=Value("bool"),
    )  # fmt: skip
    return Dataset.from_list(rows, features=columns), broken


def _read(file: str | Path) -> Iterable[tuple[int, dict]]:
    """(number, record) of a file that holds a JSON list, or one JSON object per line."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}): name a LLaVA-format JSON file.") from error
    if text.lstrip()[:1] == "[":
        yield from enumerate(_parsed(text, file))
        return
    for number, line in enumerate(text.split("\n")):  # not splitlines: JSON may hold other line breaks
        if line.strip():
            yield number, _parsed(line, file, number)


def _parsed(text: str, file: str | Path, lines_before: int = 0):
    """A file's JSON, or that of its line `lines_before`. Raises DataError that names file and line."""
    try:
        parsed = json.loads(text)
        half = ("\\ud" in text or "\\uD" in text) and holds_half_character(parsed)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}: broken JSON at line {lines_before + error.lineno}: {error.msg}; mend it there: the file is one "
            "list of records, or a record on each line."
        ) from error
    except RecursionError as error:
        raise DataError(
            f"{file}: from line {lines_before + 1} on it holds lists within lists without end: write it anew."
        ) from error
    if half:
        raise DataError(f"{file}: from line {lines_before + 1} on it holds half a character, \\ud...: write it anew.")
    return parsed


def _row(record, where: str, root: Path, words: bool) -> dict:
    """One record checked, its paths resolved and put in the order of its placeholders."""
    if not isinstance(record, dict):
        raise DataError(f"{where} is no object; each record needs 'conversations'.")
    where += f" (id {record['id']!r})" if "id" in record else ""
    files = {kind: _paths(record.get(kind), f"{where}: {kind!r}") for kind in ("image", "video")}
    words = words and not any(files.values())
    turns = _turns(record, where, words)
    wanted = [] if words else visual_kinds(turns)
    for kind, paths in files.items():
        if wanted.count(kind) != len(paths):
            raise DataError(
                f"{where} has {wanted.count(kind)} <{kind}> placeholder(s) and {len(paths)} {kind} file(s): "
                "write one placeholder for each file."
            )
    family = record.get("family")
    if not isinstance(family, int | None):
        raise DataError(f"{where}: 'family' must be a whole number; or leave it out.")
    supply = {kind: iter(paths) for kind, paths in files.items()}
    return {
        "id": str(record.get("id", where)),
        "images": [str(root / path) for path in files["image"]],
        "videos": [str(root / path) for path in files["video"]],
        "visuals": [str(root / next(supply[kind])) for kind in wanted],
        "conversations": turns,
        "types": _of_answers(record, "types", str, "strings", len(turns) // 2, where),
        "needs_order": _of_answers(record, "needs_order", bool, "true or false", len(turns) // 2, where),
        "family": -1 if family is None else family,
        "where": where,
        "words": words,  # whether its placeholders are words
    }


def _turns(record: dict, where: str, words: bool) -> list[dict]:
    """A record's turns, checked. If several turns begin with an answer, it is left out, as the original does with
    ShareGPT's conversations, whose beginning was cut off."""
    turns = record.get("conversations")
    well_formed = isinstance(turns, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)
        for turn in turns
    )
    if not turns or not well_formed:
        raise DataError(f"{where}: 'conversations' must be a list of {{'from': ..., 'value': ...}} texts.")
    if turns[0]["from"] == "gpt" and len(turns) > 1:
        turns = turns[1:]
    check_turns(turns, where, words)
    return [{"from": turn["from"], "value": turn["value"]} for turn in turns]


def _of_answers(record: dict, key: str, kind: type, kinds: str, answers: int, where: str) -> list:
    """What a record says of each of its answers under `key`; an empty list if it says nothing."""
    values = record.get(key) or []
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise DataError(f"{where}: {key!r} must be a list of {kinds}, one for each answer; or leave it out.")
    if values and len(values) != answers:
        raise DataError(
            f"{where}: {key!r} is {len(values)} long and there are {answers} answers: give one for each, or leave it "
            "out."
        )
    return values


def _paths(value, where: str) -> list[str]:
    paths = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise DataError(f"{where} must be a path or a list of paths, none of them empty.")
    return paths


def check_folder(media: str | Path | None):
    """Raises DataError if a media folder is named and not there: one sentence, not one for each file."""
    if media is not None and not Path(media).is_dir():
        raise DataError(f"{media} is no folder: name the one that the records' paths start from.")


Probe = Callable[[str, str], object]  # (path, "image" or "video"): raises MediaError for a file that cannot be used


def check_media(records, skip_broken: bool = False, progress: bool = True, probe: Probe = probe_media):
    """Decodes every file once before training starts. Returns (records, files that were left out).

    Raises MediaError listing all broken files, unless `skip_broken`: then the records that need them go.
    """
    broken = broken_media(records, progress, probe)
    if broken and not skip_broken:
        listed = "\n  ".join(broken.values())
        raise MediaError(
            f"{len(broken)} of the files cannot be used:\n  {listed}\nMend them, or skip them with --skip-broken."
        )
    if broken:
        records = records.filter(lambda row: not any(path in broken for path in row["visuals"]))
        if not len(records):
            raise MediaError("No record is left once those with broken files are skipped.")
    return records, sorted(broken)


def broken_media(records, progress: bool = True, probe: Probe = probe_media) -> dict[str, str]:
    """Decodes every file once, as what records use it: {path: what is wrong with it} of those that cannot be used."""
    from tqdm.auto import tqdm

    broken = {}
    files = [(path, kind) for kind in ("image", "video") for path in unique_files(records, kind)]
    for path, kind in tqdm(files, desc="check media", disable=not progress, leave=False):
        try:
            probe(path, kind)
        except MediaError as error:
            broken[path] = str(error)
    return broken


def asked_kind(images: Sequence[str], videos: Sequence[str]) -> str:
    """What a record with these files is about: "video", "image" where it has no clip, or "text"."""
    return "video" if videos else "image" if images else "text"


def unique_files(records, kind: str | None = None) -> list[str]:
    """Every file that records name, once, in order of first use; `kind` "image" or "video" selects."""
    columns = {"image": ["images"], "video": ["videos"], None: ["images", "videos"]}[kind]
    return list(dict.fromkeys(path for column in columns for row in records[column] for path in row))
