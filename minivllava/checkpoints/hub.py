"""Where a checkpoint is: in a folder, or on the Hugging Face hub."""

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from minivllava.checkpoints.storage import read_card
from minivllava.errors import CheckpointError, short_reason

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# what is small comes first: sizes are known, and refused, before gigabytes are downloaded
SMALL_FILES = ("*.json", "*.txt", "*.jinja", "tokenizer.model")


@dataclass(frozen=True)
class Source:
    """A checkpoint's folder; of a hub id, the folder that it was downloaded to."""

    name: str
    folder: Path
    on_hub: bool = False

    @classmethod
    def find(cls, name: str | Path) -> "Source":
        """The folder `name`, or else the hub id. Raises CheckpointError when there is neither."""
        if not isinstance(name, str | os.PathLike):
            raise CheckpointError(f"{name!r} is no name of a checkpoint: name a folder or a hub id.")
        path = Path(name)
        if os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
            return cls(str(name), path)
        text = path.as_posix()
        # a path whose first folder is there is a mistyped path, and nothing to ask the hub for
        if HUB_ID.fullmatch(text) and not os.path.exists(path) and not os.path.exists(path.parts[0]):
            return cls(text, _download(text, SMALL_FILES), on_hub=True)
        hub = f" (The hub is not asked, since a folder {path.parts[0]} is here.)" if HUB_ID.fullmatch(text) else ""
        raise CheckpointError(f"{name} is no checkpoint folder: name the folder that holds config.json.{hub}")

    @cached_property
    def card(self) -> dict:
        """Its config.json. Raises CheckpointError."""
        file = self.folder / "config.json"
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: name the folder of a finished checkpoint.")
        return read_card(file, "copy it again")

    def weights_folder(self) -> Path:
        """The folder with the weights too; of a hub id they are downloaded now, in one format only."""
        if self.on_hub:
            _download(self.name, ("model*.safetensors",))
            if not any(self.folder.glob("*.safetensors")):
                _download(self.name, ("pytorch_model*.bin",))
        return self.folder


def _download(name: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # of the hub, the network and the disk; each has its own types
        raise CheckpointError(
            f"{name} is no folder here, and the hub does not give it ({type(error).__name__}: {short_reason(error)}): "
            "check the name and the network, or download it elsewhere and name the folder."
        ) from error
