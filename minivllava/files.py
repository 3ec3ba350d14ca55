"""Files written all or nothing: whoever reads one finds the old one, the new one or none, never half.

`json_hash` is for files that say what they were made of, `remove_abandoned` for what killed processes leave.
"""

import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write under, moved to `path` once the block ends well and removed otherwise.

    Makes the folder where there is none.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.errno and str(error.filename or part).startswith(str(part)):
            error.filename = str(path)  # a name that the reader of a message knows
        raise
    finally:
        part.unlink(missing_ok=True)


def remove_abandoned(folder: Path, pattern: str, age: float = 24 * 3600):
    """Removes the folders of that pattern in which nothing came or went for `age` seconds: of processes that were
    killed."""
    for left in folder.glob(pattern):
        with suppress(OSError):  # another process was faster
            changed = max((os.stat(place).st_mtime for place, *_ in os.walk(left)), default=math.inf)
            if time.time() - changed >= age:
                shutil.rmtree(left, ignore_errors=True)


def write_text(path: str | Path, text: str):
    """Writes text as UTF-8; what is no valid text (half of a surrogate pair) is written as an escape."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value, indent: int | None = None):
    """Writes a value of JSON types and a line break."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def holds_half_character(value) -> bool:
    """Whether a value of JSON types holds one half of a surrogate pair, which is JSON ("\\ud83d") but no text."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def json_hash(value, sort_keys: bool = False) -> str:
    """16 hexadecimal digits that tell a value of JSON types from others; sort_keys: whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=sort_keys).encode()).hexdigest()[:16]
