"""Bad input at the command line: exit code 2, one clear line on stderr that names the file and the fix."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from tiny import square, tiny_languagebind, tiny_tokenizer, tiny_vllava, write_records

from minivllava import cli
from minivllava.checkpoints.saving import save_model
from minivllava.cli.ask import _lines
from minivllava.data.write_media import write_image, write_video


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of a tiny model."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_vllava().save_pretrained(path)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a good image and a good clip in it, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIVLLAVA_CACHE", str(tmp_path / "cache"))
    write_image("good.png", square("red", 4))
    write_video("good.mp4", np.stack([square("blue", left) for left in range(0, 20, 3)]))
    return tmp_path


@pytest.fixture
def run(place, capfd, monkeypatch):
    """run(*arguments) -> (exit code, stdout, stderr without progress bars)."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["minivllava", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capfd.readouterr()
        lines = [line.rsplit("\r", 1)[-1].strip() for line in err.splitlines()]
        return code, out, [line for line in lines if line and "%|" not in line and "it/s" not in line]

    return command


@pytest.fixture
def refused(run):
    """refused(words, *arguments): the command ends with code 2 and one line that holds all the words."""

    def command(words, *arguments):
        code, out, err = run(*arguments)
        assert code == 2, (code, out, err)
        assert len(err) == 1, err
        assert err[0].startswith("minivllava: ")
        assert not [word for word in words if word not in err[0]], err[0]

    return command


# files


def damage(name: str | Path, damaged: str, keep):
    data = Path(name).read_bytes()
    Path(damaged).write_bytes(data[: keep(len(data))])


BAD_FILES = {
    "missing": ("missing.png", lambda: None, "no such file"),
    "missing clip": ("missing.mp4", lambda: None, "no such file"),
    "empty": ("empty.png", Path("empty.png").touch, "is empty"),
    "empty clip": ("empty.mp4", Path("empty.mp4").touch, "is empty"),
    "truncated": ("cut.png", lambda: damage("good.png", "cut.png", lambda n: n // 2), "again"),
    "truncated clip": ("cut.mp4", lambda: damage("good.mp4", "cut.mp4", lambda n: n // 2), "again"),
    "not media": ("text.png", lambda: Path("text.png").write_text("no image\n" * 20), "again"),
    "not media, clip": ("text.mp4", lambda: Path("text.mp4").write_text("no clip\n" * 20), "again"),
    "no frames": ("none.mp4", lambda: damage("good.mp4", "none.mp4", lambda n: 40), "again"),
    "a folder": ("folder.png", Path("folder.png").mkdir, "is a folder"),
    "unknown suffix": ("notes.txt", Path("notes.txt").touch, "rename or convert"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_ask_about_a_bad_file(refused, model, case):
    name, make, fix = BAD_FILES[case]
    make()
    refused([name, fix], "ask", model, "good.png", name, "What is this?")


def test_ask_without_a_question(refused, model):
    refused(["good.png", "put a question"], "ask", model, "good.png")
    refused(["missing.png", "is not there"], "ask", model, "missing.png")
    refused(["empty"], "ask", model, "good.png", " ")


def test_placeholder_without_a_file(refused, model):
    refused(["<image>", "no file"], "ask", model, "<image> What is this?")
    refused(["<image>", "no file"], "ask", model, "good.mp4", "<video> and <image>?")
    refused(["<image>", "no file"], "ask", model, "good.mp4", "<image>?")


def test_file_without_a_placeholder(refused, model):
    shutil.copy("good.png", "second.png")
    refused(["second.png", "placeholder"], "ask", model, "good.png", "second.png", "What is <image>?")


def test_too_long_for_the_context(refused, model):
    refused(["good.mp4", "context", "128", "fewer frames"], "ask", model, "good.mp4", "What moves?", "--frames", 32)


def test_what_no_file_system_or_dtype_holds(refused, model):
    refused(["is no checkpoint folder"], "ask", "m" * 300, "What?")
    refused(["is no name of a run"], "train", "--preset", "sample", "--name", "n" * 300)
    refused(["There is no dtype", "float64"], "ask", model, "What?", "--dtype", "float64")
    Path("file").touch()
    refused(["file", "cannot be made", "--out"], "port", model, "--out", "file/inside")


GQA = Path(__file__).parent / "fixtures/benchmarks/gqa"
SCORE = ["score", "gqa", "--questions", str(GQA / "data/testdev_balanced_questions.json")]
SCORE += ["--answers", str(GQA / "answers.jsonl")]


def test_where_results_cannot_go_is_said_before_any_work(refused, model):
    Path("file").touch()
    for command in (["evaluate", model], ["retrieve"], ["bench"], SCORE):
        refused([". is a folder", "--out"], *command, "--out", ".")
        refused(["file/r.json", "cannot be made", "--out"], *command, "--out", "file/r.json")
    refused(["file", "cannot be made"], "ablate", "alignment", "--preset", "sample", "--out", "file")
    refused(["file", "cannot be made"], "grade", ".", "--out", "file")
    refused(["file/world", "cannot be made"], "data", "--preset", "sample", "--out", "file/world")
    refused(["file/s.png", "cannot be made", "--sheet"], "data", "--preset", "sample", "--sheet", "file/s.png")
    refused(["file/f.png", "cannot be made", "--figure"], "evaluate", model, "--figure", "file/f.png")


@pytest.mark.parametrize("as_json", [["--json"], []])
def test_results_are_shown_though_they_cannot_be_written(run, monkeypatch, as_json):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("minivllava.files.os.replace", full)
    code, out, err = run(*SCORE, "--out", "r.json", *as_json)
    assert (code, len(err)) == (2, 1) and "75.0" in out
    assert err[0].startswith("minivllava: r.json cannot be read or written (No space left")


def test_what_the_file_system_refuses_is_one_line(refused, model, monkeypatch):
    Path("file").touch()
    notebooks = Path(__file__).parents[1] / "notebooks"
    refused(["file", "cannot be read or written"], "assign", "file/copies", "--source", notebooks)
    monkeypatch.setenv("MINIVLLAVA_CACHE", "file/cache")
    refused(["file", "cannot be read or written"], "data", "--preset", "sample")

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("minivllava.checkpoints.storage.save_file", full)
    refused(["new cannot be written", "No space left"], "convert", model, "new")
    monkeypatch.setattr("minivllava.checkpoints.convert.convert", full)
    refused(["No space left"], "convert", model, "new")


def test_where_an_export_cannot_go(refused):
    Path("run").mkdir()
    Path("file").touch()
    refused(["run is the run itself"], "export", "run", "../" + Path.cwd().name + "/run")
    refused(["file is a file"], "export", "run", "file")


def test_who_stops_reading_is_no_error(place):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "minivllava.cli", *SCORE, "--json"]
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_what_is_typed_in_a_terminal_may_be_no_utf_8(monkeypatch, capsys):
    typed = io.TextIOWrapper(io.BytesIO(b"Wh\xfft?\n"), encoding="utf-8", errors="surrogateescape")
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", typed)
    assert list(_lines()) == ["Wh\N{REPLACEMENT CHARACTER}t?"]
    monkeypatch.setattr("sys.stdin", None)
    assert list(_lines()) == []


def test_what_is_odd_but_good_is_answered(run, model):
    """Odd sizes, a one-frame clip, a text-only question, a very long one that is no file: no errors."""
    rng = np.random.default_rng(0)
    write_image("odd.png", rng.integers(0, 255, (17, 31, 3), dtype=np.uint8))
    write_image("dot.png", rng.integers(0, 255, (1, 1, 3), dtype=np.uint8))
    write_video("one.mp4", square("red", 4)[None])
    for files in (["odd.png"], ["dot.png"], ["one.mp4"], ["good.mp4", "good.png"], []):
        code, out, err = run("ask", model, *files, "What?", "--max-new-tokens", 3, "--json")
        assert (code, err) == (0, []), err
        assert json.loads(out)["files"] == files
    code, _, err = run("ask", model, "good.png", "Wh\udcffat?", "--temperature", 1e-40, "--max-new-tokens", 3)
    assert (code, err) == (0, []), "bytes that are no UTF-8; a temperature below what float32 holds"
    code, out, err = run("ask", model, "good.png", "good.mp4", "First <video>, then <image>?", "--max-new-tokens", 3)
    assert (code, err) == (0, []) and out.endswith("\n")


# checkpoints


def test_a_bad_checkpoint(refused, model):
    ask = ("good.png", "What is this?")
    refused(["nothing", "no checkpoint folder"], "ask", "nothing", *ask)
    shutil.copytree(model, "half")
    damage(model / "model.safetensors", "half/model.safetensors", lambda n: n // 2)
    refused(["half/model.safetensors", "truncated"], "ask", "half", *ask)
    shutil.rmtree("half")
    shutil.copytree(model, "half", ignore=shutil.ignore_patterns("*.safetensors"))
    refused(["half", "model.safetensors", "missing"], "ask", "half", *ask)
    shutil.copy(model / "model.safetensors", "half")
    card = json.loads(Path("half/config.json").read_text())
    card["config"]["language"]["mlp_width"] = 64
    Path("half/config.json").write_text(json.dumps(card))
    refused(["half/model.safetensors", "does not fit its config"], "ask", "half", *ask)
    Path("half/config.json").write_text("{")
    refused(["half/config.json", "no JSON"], "ask", "half", *ask)
    save_model(tiny_languagebind(), "bound", "languagebind", tokenizer=tiny_tokenizer())
    refused(["bound/config.json", "'languagebind'"], "ask", "bound", *ask)


def test_a_device_that_holds_nothing(refused, model):
    refused(["The device meta", "such as cpu"], "ask", model, "good.png", "What is this?", "--device", "meta")


def test_a_bad_checkpoint_is_refused_before_a_world_is_made(refused, model, monkeypatch):
    monkeypatch.setattr("minivllava.data.build.build_world", None)
    monkeypatch.setattr("minivllava.bench.shipped.build_world", None)
    refused(["nothing", "no checkpoint folder"], "port", "nothing")
    refused(["nothing", "no checkpoint folder"], "bench", "nothing")
    refused(["--tokens", "for --gpu"], "bench", "--tokens", "8")
    refused(["no temporal attention"], "port", _still(model))


def _still(model) -> Path:
    """The model without temporal attention."""
    from minivllava import VideoLLaVA
    from minivllava.evaluation.port import without_temporal_attention

    without_temporal_attention(VideoLLaVA.from_pretrained(model)).save_pretrained("still")
    return Path("still")


# your own data


def train(model, *arguments):
    return ("train", "--init", model, "--device", "cpu", "--name", "run", *arguments)


@pytest.mark.parametrize(
    "text, words",
    [
        ('[{"id": 1,', ["data.json", "broken JSON"]),
        ("[]", ["data.json", "no records"]),
        ('[{"id": 7}]', ["data.json", "id 7", "'conversations'"]),
        ('[{"image": "good.png", "conversations": [{"from": "human", "value": "What?"}, '
         '{"from": "gpt", "value": "red"}]}]', ["record 0", "<image>", "one placeholder for each file"]),
        ('[{"conversations": [{"from": "human", "value": "<video> What?"}, {"from": "gpt", "value": "red"}]}]',
         ["record 0", "<video>", "one placeholder for each file"]),
        ('[{"conversations": [{"from": "gpt", "value": "red"}]}]', ["record 0", "alternate"]),
        ('[{"id": "long", "conversations": [{"from": "human", "value": "' + "far too long " * 50 +
         '"}, {"from": "gpt", "value": "yes"}]}]', ["long", "context", "128"]),
        ('[{"conversations": [{"from": "human", "value": "What?"}]}]', ["record 0", "add gpt turns"]),
    ],
)  # fmt: skip
def test_broken_records(refused, model, text, words):
    Path("data.json").write_text(text)
    refused(words, *train(model, "--data", "data.json"))


def test_missing_files_of_a_training_run(refused, model):
    refused(["nothing.json", "cannot be read"], *train(model, "--data", "nothing.json"))
    refused(["--init"], "train", "--data", "data.json", "--name", "run")
    write_records(Path("."))
    refused(["nowhere"], "train", "--data", "records.json", "--init", "nowhere", "--name", "run")


def test_options_that_would_be_left_unused(refused, model):
    refused(["--from-scratch", "leave out"], "train", "--from-scratch", "--init", model)
    refused(["--from-scratch", "leave out"], *train(model, "--data", "records.json", "--from-scratch"))
    refused(["--more-text", "leave out"], "train", "--more-text", "--from-scratch")
    refused(["--media", "--data"], "train", "--media", ".")
    refused(["--skip-broken", "--data"], "train", "--skip-broken")
    refused(["--media", "--inspect"], "data", "--media", ".")


def test_where_the_world_cannot_go_is_said_before_it_is_made(refused, monkeypatch):
    monkeypatch.setattr("minivllava.data.build.build_world", None)
    Path("there").mkdir()
    refused(["there is there already", "name a new folder"], "data", "--preset", "sample", "--out", "there")
    refused(["sheet.xyz", ".png"], "data", "--preset", "sample", "--sheet", "sheet.xyz")


def test_a_media_folder_that_is_not_there(refused, model):
    write_records(Path("."))
    refused(["nowhere is no folder"], *train(model, "--data", "records.json", "--media", "nowhere"))
    refused(["nowhere is no folder"], "data", "--inspect", "records.json", "--media", "nowhere")
    assert not Path("runs").exists()


def test_inspecting_broken_media_ends_with_2(run, model):
    write_records(Path("."))
    assert run("data", "--inspect", "records.json")[0] == 0
    Path("red.png").write_bytes(b"no image")
    code, out, _ = run("data", "--inspect", "records.json")
    assert code == 2 and "1 broken files" in out and "red.png" in out


def test_evaluations_of_two_runs_have_two_files(run, model, monkeypatch):
    monkeypatch.setattr("minivllava.data.build.build_world", lambda *_: None)
    monkeypatch.setattr("minivllava.evaluation.evaluate.evaluate_world", lambda *_: {"tables": {}})
    for name in ("one", "two"):
        shutil.copytree(model, f"runs/{name}/model")
        code, out, err = run("evaluate", f"runs/{name}/model", "--device", "cpu")
        assert code == 0 and f"runs/evaluations/{name}.json" in out, err


def test_parts_of_another_preset(refused):
    parts = Path(__file__).parents[1] / "data/pretrained/parts"
    words = ["image", "width 128, not 384", "--init", "--from-scratch"]
    refused(words, "train", "--preset", "small", "--init", parts, "--name", "run")


def test_the_help_of_ask_names_the_placeholders(run):
    assert "<image> and <video> may say" in " ".join(run("ask", "--help")[1].split())


def test_broken_media_in_training(run, model, place):
    """All broken files are listed before training starts; by wish they are left out, and counted."""
    write_records(place)
    (place / "red.png").write_bytes(b"")
    (place / "blue.mp4").unlink()
    command = train(model, "--data", "records.json", "--epochs", 0.2, "--set", "stage2.batch_size=4")
    code, _, err = run(*command)
    message = " ".join(err)
    assert code == 2 and not (place / "runs/run/model").exists()
    assert all(word in message for word in ("2 of the files", "red.png", "blue.mp4", "--skip-broken")), message
    code, out, err = run(*command, "--skip-broken")
    assert code == 0, err
    assert "Left out 2 broken file(s)" in out and "red.png" in out and "blue.mp4" in out
    assert (place / "runs/run/model/config.json").exists()


def test_a_run_of_that_name_with_another_recipe(run, refused, model, place):
    write_records(place)
    command = train(model, "--data", "records.json", "--epochs", 0.2)
    assert run(*command, "--set", "stage2.batch_size=4")[0] == 0
    refused(["runs/run", "another"], *command, "--set", "stage2.batch_size=2")


@pytest.mark.parametrize("rank, told", [(0, True), (1, False)])
def test_of_several_processes_one_evaluates_and_reports(run, place, monkeypatch, rank, told):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr("minivllava.training.run.train_video_llava", lambda *_, **__: None)
    monkeypatch.setattr("minivllava.training.run.finetune", lambda *_, **__: (None, ["gone.png"]))
    monkeypatch.setattr("minivllava.cli.train._evaluate_and_report", lambda *_: print("evaluated"))
    left = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: left.append(rank))
    for arguments in (["--preset", "sample"], ["--data", "data.json", "--init", "start"]):
        code, out, err = run("train", *arguments)
        assert (code, bool(out)) == (0, told), err
    assert left == [rank, rank], "a process that exits while connected may abort, and end the one that evaluates"


# presets and changes


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--preset", "huge"], ["'huge'", "tiny"]),
        (["--set", "stage2.stepz=5"], ["stepz", "steps"]),
        (["--set", "stage2.steps=many"], ["many"]),
        (["--set", "stage2.steps"], ["FIELD=VALUE"]),
        (["--set", "model.image.patch_size=7"], ["patch_size 7"]),
        (["--set", "world.images=-5"], ["images is -5"]),
        (["--name", "../elsewhere"], ["../elsewhere", "runs"]),
    ],
)
def test_presets_and_changes_that_do_not_exist(refused, arguments, words):
    refused(words, "train", "--name", "run", *arguments)


def test_unknown_options_and_commands_end_with_code_2(run):
    for arguments in (["ask"], ["fly"], ["train", "--fast"], ["ask", "a", "b", "--temperature", "-1"]):
        code, _, err = run(*arguments)
        assert code == 2 and err


def test_no_parts_to_start_from(refused):
    refused(["data/pretrained/parts"], "train", "--name", "run", "--device", "cpu")


@torch.no_grad()
def test_from_python_the_same_mistakes_raise_typed_exceptions(model, place):
    from minivllava import VideoLLaVA
    from minivllava.chat import Conversation
    from minivllava.errors import (
        CheckpointError,
        ConfigError,
        ContextLengthError,
        DataError,
        MediaError,
        MinivllavaError,
    )

    loaded = VideoLLaVA.from_pretrained(model)
    assert loaded.chat("What?", images="good.png") == loaded.chat("What?", images=["good.png"])  # one path will do
    for kind, mistake in (
        (MediaError, lambda: loaded.chat("What?", images=["missing.png"])),
        (MediaError, lambda: loaded.chat("What?", images=["good.mp4"])),
        (ConfigError, lambda: loaded.chat("What?", videos="good.mp4", frames=0)),
        (DataError, lambda: loaded.chat("  ", images="good.png")),
        (DataError, lambda: Conversation(loaded).ask("", images="good.png")),
        (DataError, lambda: loaded.chat("<image> What?")),
        (DataError, lambda: loaded.chat("<image> What?", videos=["good.mp4"])),
        (DataError, lambda: loaded.chat("<image> What?", images=["good.png"] * 2)),
        (ContextLengthError, lambda: loaded.chat("What? " * 100)),
        (CheckpointError, lambda: VideoLLaVA.from_pretrained("nothing")),
    ):
        with pytest.raises(kind) as error:
            mistake()
        assert isinstance(error.value, MinivllavaError)
