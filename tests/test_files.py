"""Files are whole or not there: nothing is left beside them, and what stood there before stays."""

import json
import os

import pytest

from minivllava.checkpoints.storage import write_folder
from minivllava.files import json_hash, replacing, write_json, write_text


def test_a_file_appears_whole_in_a_folder_that_is_made(tmp_path):
    file = tmp_path / "new" / "answers.json"
    write_json(file, {"answer": "größer"}, indent=1)
    assert file.read_text(encoding="utf-8") == '{\n "answer": "größer"\n}\n'
    assert list(file.parent.iterdir()) == [file]


def test_a_writer_that_is_stopped_leaves_what_was_there(tmp_path):
    file = tmp_path / "notes.txt"
    write_text(file, "before")
    with pytest.raises(KeyboardInterrupt), replacing(file) as part:
        part.write_text("half of wh")
        raise KeyboardInterrupt
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("write", [write_text, lambda path, _: write_folder(path, lambda new: (new / "a/b").open())])
def test_what_cannot_be_written_is_named_as_it_was_asked_for(tmp_path, write):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as error:
        write(tmp_path / "folder", "text")
    assert error.value.filename == str(tmp_path / "folder") and os.listdir(tmp_path) == ["folder"]


def test_text_that_is_no_unicode_is_written_as_an_escape(tmp_path):
    write_json(tmp_path / "a.json", "half \ud83d")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == "half \ud83d"


def test_hashes_of_json_stay():
    """Unfinished runs and committed results hold such hashes."""
    assert json_hash(("é", {"b": 1, "a": 2.5})) == "8813b64de14aa60f"
    assert json_hash(["é", {"a": 2.5, "b": 1}], sort_keys=True) == "ecefc17c5a0152cd"
