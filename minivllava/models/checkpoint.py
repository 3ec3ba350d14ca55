"""Checkpoints in this project's own layout: a folder of `config.json`, `model.safetensors`, `tokenizer.json`.

A folder appears under its name only when it is whole: it is written beside, then renamed. Tensors that are
equal (the video encoder's spatial weights are the image encoder's) are stored once.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minivllava.config import LanguageConfig, ModelConfig, from_dict, to_dict
from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import CheckpointError, ConfigError
from minivllava.models.language import LanguageModel
from minivllava.models.languagebind import LanguageBind, LanguageBindConfig
from minivllava.models.vllava import VideoLLaVA

FORMAT = "minivllava/1"


def save_vllava(model: VideoLLaVA, path: str | Path, dtype: torch.dtype | None = None, notes: dict | None = None):
    """Writes a Video-LLaVA checkpoint folder. `notes` go into its config.json as they are."""
    save_model(model, path, "video-llava", dtype, notes)


def load_vllava(path: str | Path, device: str | torch.device = "cpu", dtype=torch.float32) -> VideoLLaVA:
    """Reads a Video-LLaVA checkpoint folder, in eval mode. Raises CheckpointError."""
    config, tokenizer = read_config(path, "video-llava", ModelConfig)
    return _fill(VideoLLaVA, config, path, device, dtype, tokenizer=tokenizer)


def load_languagebind(path: str | Path, device="cpu", dtype=torch.float32) -> tuple[LanguageBind, Tokenizer]:
    """Reads a folder of bound encoders, in eval mode. Raises CheckpointError."""
    config, tokenizer = read_config(path, "languagebind", LanguageBindConfig)
    return _fill(LanguageBind, config, path, device, dtype), tokenizer


def load_language(path: str | Path, device="cpu", dtype=torch.float32) -> tuple[LanguageModel, Tokenizer]:
    """Reads a language model's folder, in eval mode. Raises CheckpointError."""
    config, tokenizer = read_config(path, "language", LanguageConfig)
    return _fill(LanguageModel, config, path, device, dtype), tokenizer


def save_model(
    model: nn.Module,
    path: str | Path,
    kind: str,
    dtype: torch.dtype | None = None,
    notes: dict | None = None,
    tokenizer: Tokenizer | None = None,
):
    """Writes any of the three kinds of model folder, all or nothing. Of several processes all call it, and one
    writes."""
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    card = {"format": FORMAT, "kind": kind, "config": to_dict(model.config), "notes": notes or {}}

    tensors = gathered(model.state_dict())

    def write(folder: Path):
        save_tensors(tensors, folder / "model.safetensors", dtype)
        (folder / "config.json").write_text(json.dumps(card, indent=1) + "\n")
        if tokenizer is not None:
            tokenizer.save(folder / "tokenizer.json")

    write_folder(path, write)


def write_folder(path: str | Path, write: Callable[[Path], None]):
    """Calls `write(folder)` on a new folder beside `path`, then puts it in `path`'s place in one step.

    Of several processes all call it, and only the main one writes.
    """
    if not is_main_process():
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    new, old = path.with_name(f".{path.name}.{token}.new"), path.with_name(f".{path.name}.{token}.old")
    new.mkdir()
    try:
        write(new)
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    finally:
        if old.exists() and not path.exists():  # stopped between the two renames
            os.replace(old, path)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def is_main_process() -> bool:
    """Whether this process is the one that writes files (of several that `accelerate launch` started)."""
    return int(os.environ.get("RANK", "0")) == 0


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in place of those that FSDP has sharded; every process must take part."""
    return {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in tensors.items()}


def save_tensors(tensors: dict[str, Tensor], path: Path, dtype: torch.dtype | None = None):
    """Writes tensors to a safetensors file; one that equals an earlier one is noted as its alias."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    by_shape: dict[torch.Size, list[str]] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        candidates = by_shape.setdefault(tensor.shape, []) if tensor.numel() > 1 else []
        twin = next((other for other in candidates if torch.equal(kept[other], tensor)), None)
        if twin is not None:
            aliases[name] = twin
        else:
            kept[name] = tensor.clone().contiguous()
            candidates.append(name)
    save_file(kept, path, metadata={"format": "pt", "aliases": json.dumps(aliases)})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file, aliases resolved. Raises CheckpointError that names the file."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the checkpoint is not whole; copy or train it again.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
        return tensors | {name: tensors[twin] for name, twin in aliases.items()}
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}): copy it again.") from error


def read_config(path: str | Path, kind: str, config_type: type):
    """The config and the tokenizer of a checkpoint folder of one kind. Raises CheckpointError."""
    path = Path(path)
    file = path / "config.json"
    if not path.is_dir():
        raise CheckpointError(f"{path} is no checkpoint folder: name the folder that holds config.json.")
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: name the folder of a finished checkpoint.")
    try:
        card = json.loads(file.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} is no JSON ({error}): copy it again.") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT or card.get("kind") != kind:
        found = card.get("kind", card.get("model_type")) if isinstance(card, dict) else None
        raise CheckpointError(f"{file} describes a {found!r} checkpoint; a {FORMAT} {kind!r} one is needed here.")
    try:
        config = from_dict(config_type, card["config"])
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} does not fit this version: {error}") from error
    tokenizer = Tokenizer.load(path / "tokenizer.json")
    room = getattr(config, "language", getattr(config, "text", config)).vocab_size
    if len(tokenizer) > room:
        raise CheckpointError(
            f"{path / 'tokenizer.json'} has {len(tokenizer)} tokens and the model's vocabulary holds {room}: "
            "copy the tokenizer that belongs to the model."
        )
    return config, tokenizer


def check_tensors(expected: dict[str, Tensor], found: dict[str, Tensor], where: str | Path):
    """Raises CheckpointError naming every missing, unexpected or misshapen tensor."""
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(f"{where} does not fit its config: {shown}. Use the config it was trained with.")


def _fill(model_type, config, path, device, dtype, **arguments):
    """Builds a model on the meta device, checks shapes against the file, then puts the weights in."""
    file = Path(path) / "model.safetensors"
    tensors = load_tensors(file)
    with torch.device("meta"):
        model = model_type(config, **arguments)
    check_tensors(model.state_dict(), tensors, file)
    # a tensor stored once for two parameters must become two, so that training one leaves the other alone
    tensors = {name: tensor.to(device, dtype, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(tensors, assign=True)
    if isinstance(model, VideoLLaVA):
        model.freeze_encoders()
    for part in model.modules():
        if isinstance(part, LanguageModel):
            part.tie()
    return model.eval()
