"""A model into a folder of our own layout: config.json, model.safetensors (or shards) and tokenizer.json."""

import json
from pathlib import Path

import torch
from torch import nn

from minivllava.checkpoints.devices import as_dtype
from minivllava.checkpoints.layouts import FORMAT
from minivllava.checkpoints.storage import gathered, save_shards, write_folder
from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import CheckpointError
from minivllava.overrides import to_dict


def save_model(
    model: nn.Module,
    path: str | Path,
    kind: str,
    dtype: torch.dtype | str | None = None,
    notes: dict | None = None,
    tokenizer: Tokenizer | None = None,
):
    """Writes a folder of a "video-llava", "languagebind" or "language" model, all or nothing. If there are several
    processes, all must call it; one of them writes.

    dtype: of the stored weights; by default each keeps its own. notes: go into config.json as they are. A checkpoint
    that is there already is replaced. Raises ConfigError for another dtype, CheckpointError for a rounded model, and
    for a folder that holds other files.
    """
    dtype = None if dtype is None else as_dtype(dtype)
    rounded = getattr(getattr(model, "language_model", model), "quantized", None)
    if rounded:
        raise CheckpointError(f"A model rounded to {rounded} cannot be saved: save it whole, round at load.")
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    card = {"format": FORMAT, "kind": kind, "config": to_dict(model.config), "notes": notes or {}}
    if tokenizer is None:
        card["tokenizer"] = False  # none is missing, then
    tensors = gathered(model.state_dict())

    def write(folder: Path):
        save_shards(tensors, folder, dtype)
        (folder / "config.json").write_text(json.dumps(card, indent=1) + "\n")
        if tokenizer is not None:
            tokenizer.save(folder / "tokenizer.json")

    write_folder(path, write)
