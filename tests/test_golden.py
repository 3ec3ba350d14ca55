"""The architecture equals the original code's: every figure that it left, at a tiny size with random weights,
comes out again within 1e-4. `check_golden.py` does the comparing, for any such folder."""

from pathlib import Path

import check_golden
import pytest
import torch
from check_golden import TOLERANCE, Golden
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parent / "golden"
RESULTS = [name for name in load_file(FOLDER / "golden.safetensors") if name.split(".")[-1] not in check_golden.INPUTS]


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    return Golden(FOLDER).errors()


def test_all_of_it_is_there():
    parts = {"hidden", "embed", "loss", "projected", "logits"}
    assert {name.split(".")[1] for name in RESULTS} == parts and len(RESULTS) == 21
    assert "depth.embed" in RESULTS, "the encoder whose LoRA is folded in at load"


@pytest.mark.parametrize("name", RESULTS)
def test_equal_to_the_original(errors, name):
    assert errors[name] <= TOLERANCE


@pytest.fixture
def changed(tmp_path):
    """A folder like the fixtures', with the figures that a test changes."""
    for folder in FOLDER.iterdir():
        if folder.name != "golden.safetensors":
            (tmp_path / folder.name).symlink_to(folder)

    def write(change) -> Path:
        stored = load_file(FOLDER / "golden.safetensors")
        change(stored)
        save_file(stored, tmp_path / "golden.safetensors")
        return tmp_path

    return write


def test_the_command_names_what_is_wrong(changed, monkeypatch, capsys):
    def spoil(stored):
        stored["video.hidden.2"][0, 1, 3] += 2e-4
        stored["image.hidden.4"] = torch.zeros(1)  # of a layer that the encoder does not have
        stored["video.logits"][:] = float("nan")

    monkeypatch.setattr(check_golden.sys, "argv", ["check_golden.py", str(changed(spoil))])
    with pytest.raises(SystemExit) as stop:
        check_golden.main()
    printed = capsys.readouterr().out
    assert stop.value.code == 1
    wrong = [line.split()[0] for line in printed.splitlines() if "TOO LARGE" in line]
    assert wrong == ["image.hidden.4", "video.hidden.2", "video.logits"]
    assert "19 of 22 tensors" in printed


def test_nothing_to_compare_is_no_success(changed, monkeypatch):
    def drop(stored):
        for name in [name for name in stored if name.split(".")[-1] not in check_golden.INPUTS]:
            del stored[name]

    folder = changed(drop)
    (folder / "cases.json").unlink()
    (folder / "cases.json").write_text("{}")
    monkeypatch.setattr(check_golden.sys, "argv", ["check_golden.py", str(folder)])
    with pytest.raises(SystemExit) as stop:
        check_golden.main()
    assert stop.value.code == 1


def test_clips_without_cls_as_in_the_code_of_2023(changed):
    def drop(stored):
        stored["video.projected"] = stored["video.projected"][:, :, 1:].contiguous()
        for case in ("video", "mixed"):  # their logits are of 2024's tokens
            del stored[f"{case}.logits"], stored[f"{case}.loss"]

    folder = changed(drop)
    (folder / "cases.json").unlink()
    (folder / "cases.json").write_text('{"image": [["image", 0]]}')
    errors = Golden(folder).errors()
    assert max(errors.values()) <= TOLERANCE and "video.projected" in errors
