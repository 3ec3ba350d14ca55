"""The folder of a run: each training step is kept on disk when it is done, and never done twice.

runs/NAME/
    run.json                    the preset, the data and the software that made it
    language/                   parts, when trained from scratch
    languagebind-image/         image encoder and text encoder
    languagebind-video/         these and the video encoder
    stage1/ model/              checkpoints; model/ is the finished Video-LLaVA
    log.json                    every training step's log
    run.lock                    held by the process that trains
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from minivllava.checkpoints.storage import is_main_process, read_card
from minivllava.config import ModelConfig
from minivllava.errors import CheckpointError, ConfigError
from minivllava.files import remove_abandoned, write_json
from minivllava.overrides import from_dict, to_dict
from minivllava.provenance import environment
from minivllava.run_config import Preset, TrainingConfig
from minivllava.training.state import decisive

UNFINISHED = "-unfinished"  # what the folder of a step's training state ends in


@contextmanager
def running(folder: str | Path, description: dict) -> Iterator["Run"]:
    """The `Run` in a folder, locked while it trains: of several processes of one run, the main one holds the lock.

    Raises CheckpointError as `Run` does, for a folder that cannot be made, and for one that is locked.
    """
    folder = Path(folder)
    with _locked(folder) if is_main_process() else nullcontext():
        yield Run(folder, description)


def _locked(folder: Path):
    lock = FileLock(folder / "run.lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return lock.acquire()
    except Timeout as error:
        raise CheckpointError(
            f"{folder} is being trained by another process: wait until it ends, or give this run another name."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be made or written ({error.strerror}): give this run another name."
        ) from error


class Run:
    """A run's folder: which steps are done, and their logs. Whoever trains opens it by `running`.

    description: JSON types that say what the run is. Raises CheckpointError for the folder of a run with another one,
    and for one that holds steps and does not say of which run.
    """

    def __init__(self, folder: str | Path, description: dict):
        self.folder = Path(folder)
        file = self.folder / "run.json"
        if not file.exists():
            steps = (*self.folder.glob("*/config.json"), *self.folder.glob(f"*{UNFINISHED}/state"))
            if steps:
                raise CheckpointError(
                    f"{steps[0].parent} was not trained by this run, or {file} is gone, which says how it was trained: "
                    "give this run another name, or move that folder away."
                )
        known = _described(file)
        changed = [key for key, value in description.items() if _decisive(key, value) != _decisive(key, known.get(key))]
        begun = bool(known) and self._begun()
        if begun and changed:
            raise CheckpointError(
                f"{self.folder} is a run with another {', '.join(changed)}: give this run another name, or delete "
                "that folder."
            )
        if not begun and any(known.get(key) != value for key, value in description.items()) and is_main_process():
            write_json(file, description | {"made_with": environment()}, indent=1)
        if is_main_process():
            for place in (self.folder, *self.folder.glob(f"*{UNFINISHED}")):
                remove_abandoned(place, ".*.????????.new", age=0)  # nobody else writes here
            for unfinished in self.folder.glob(f"*{UNFINISHED}"):  # of a run that was killed right after it had saved
                if self.done(unfinished.name.removesuffix(UNFINISHED)):
                    shutil.rmtree(unfinished, ignore_errors=True)
        self.barrier()

    def _begun(self) -> bool:
        """Whether anything was trained here: a run that failed before that may start anew with another recipe."""
        return any(file.is_dir() or file.name == "log.json" for file in self.folder.iterdir())

    def done(self, name: str) -> bool:
        """Whether the checkpoint of a step is there."""
        return (self.folder / name / "config.json").exists()

    def step(self, name: str, train: Callable[[Path], list[dict]], save: Callable[[Path], None]) -> Path:
        """Trains and saves, unless that was done before. Returns the step's checkpoint folder."""
        path = self.folder / name
        if not self.done(name):
            unfinished = self.folder / f"{name}{UNFINISHED}"
            log = train(unfinished)
            if is_main_process():
                self.write_log(name, log)
            save(path)
            self.barrier()
            if is_main_process():
                shutil.rmtree(unfinished, ignore_errors=True)
        return path

    def write_log(self, name: str, log: list[dict]):
        logs = self.logs() | {name: log}
        write_json(self.folder / "log.json", logs)

    def logs(self) -> dict[str, list[dict]]:
        """Each finished step's log."""
        return _read(self.folder / "log.json")

    @staticmethod
    def barrier():
        """Waits until every process of the run is here."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()


def _decisive(key: str, value):
    """What the weights of a run follow from, in one field of its description; a part of a config that did not exist
    when it was written has its default."""
    try:
        if key == "preset":
            preset = from_dict(Preset, value)
            recipes = {name: decisive(part) for name, part in vars(preset).items() if isinstance(part, TrainingConfig)}
            return to_dict(preset) | recipes
        if key == "model":
            return to_dict(from_dict(ModelConfig, value))
        if key in ("training", "stage1", "stage2"):  # those of a recipe say how many records there are, too
            fields = {name: field for name, field in value.items() if name != "records"}
            return decisive(from_dict(TrainingConfig, fields)), value.get("records")
        if key == "data":
            return {os.path.abspath(file): digest for file, digest in value.items()}
        if key == "recipe":  # what its changes lead to is in the model and the stages
            return {name: part for name, part in value.items() if name != "change"}
    except (ConfigError, AttributeError):  # it has a field that no longer exists, or is no config
        return value
    return os.path.abspath(value) if key in ("start", "media", "root") and value else value


def as_before(folder: str | Path, field: str, path: str | Path) -> str:
    """A path, or the spelling of it in that field of a run's description: the state of a step is of records that hold
    it. Raises CheckpointError if the description cannot be read."""
    before = _described(Path(folder) / "run.json").get(field)
    return before if before and _decisive(field, before) == os.path.abspath(path) else str(path)


def _described(file: Path) -> dict:
    """A run's description. In an early one the media folder is "None" if none was named: that of the first file."""
    known = _read(file)
    if known.get("media") == "None" and known.get("data"):
        known["media"] = str(Path(next(iter(known["data"]))).parent)
    return known


def _read(file: Path) -> dict:
    """A JSON object; an empty one if there is no file. Raises CheckpointError if the file cannot be read."""
    return read_card(file, f"delete {file.parent} to start over") if file.exists() else {}
