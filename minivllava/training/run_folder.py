"""The folder of a run: each training step is kept on disk when it is done, and never done twice.

runs/NAME/
    run.json                    the preset, the data and the software that made it
    language/ languagebind/     parts, when trained from scratch
    stage1/ model/              checkpoints; model/ is the finished Video-LLaVA
    log.json                    every training step's log
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from minivllava.checkpoints.storage import is_main_process, read_card
from minivllava.config import ModelConfig, Preset, TrainingConfig
from minivllava.errors import CheckpointError, ConfigError
from minivllava.files import write_json
from minivllava.overrides import from_dict, to_dict
from minivllava.provenance import environment

UNFINISHED = "-unfinished"  # what the folder of a step's training state ends in


class Run:
    """A run's folder: which steps are done, and their logs.

    description: JSON types that say what the run is. Raises CheckpointError for the folder of a run with another one,
    and for a folder that cannot be made.
    """

    def __init__(self, folder: str | Path, description: dict):
        self.folder = Path(folder)
        file = self.folder / "run.json"
        known = _read(file)
        changed = [key for key in description if not known or _completed(key, known.get(key)) != description[key]]
        if known and changed and self._begun():
            raise CheckpointError(
                f"{self.folder} is a run with another {', '.join(changed)}: give this run another name, or delete "
                "that folder."
            )
        if changed and is_main_process():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(
                    f"{self.folder} cannot be made ({error.strerror}): give this run another name."
                ) from error
            write_json(file, description | {"made_with": environment()}, indent=1)
        if is_main_process():
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


def _completed(key: str, value):
    """A description with the default of every field that did not exist when it was written."""
    kind = {"preset": Preset, "model": ModelConfig, "training": TrainingConfig}.get(key)
    try:
        return value if kind is None else to_dict(from_dict(kind, value))
    except ConfigError:  # it has a field that no longer exists
        return value


def _read(file: Path) -> dict:
    """A JSON object; an empty one if there is no file. Raises CheckpointError if the file cannot be read."""
    return read_card(file, f"delete {file.parent} to start over") if file.exists() else {}
