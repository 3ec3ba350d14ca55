"""Files of tensors and whole folders, written all or nothing."""

import glob
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minivllava.checkpoints.weights import raise_problems, read_aliases, refuse_overflow
from minivllava.errors import CheckpointError, short_reason
from minivllava.files import remove_abandoned

SHARD_BYTES = 5_000_000_000
# what is written here: checkpoints of both layouts, any tokenizer, how they were trained, the states of training; and
# what a Mac leaves in every folder that it shows
OWN_FILES = re.compile(
    r"(run|log)\.json|run\.lock|(config|(generation|preprocessor|processor)_config|state)\.json"
    r"|(weights|optimizer)\.safetensors|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
    r"|tokenizer.*\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
    r"|(spiece|sentencepiece\.bpe)\.model|chat_template\.jinja|\.DS_Store"
)


def write_folder(path: str | Path, write: Callable[[Path], None]):
    """Calls `write(folder)` on a new folder beside `path`, then puts it in `path`'s place.

    A folder that was there before is moved aside first: a process that is killed right then leaves it for
    `recover_folder`; a new folder that it leaves is removed here, a day later. If there are several processes, all
    must call it; only the main one writes.

    Raises CheckpointError, before anything is written, for a file, for the working folder, and for a folder that holds
    anything not written here: replacing it would delete that; and for tensors that the disk does not take.
    For other files that is an OSError, which names `path`.
    """
    if not is_main_process():
        return
    path = Path(path).resolve()
    _check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, f".{glob.escape(path.name)}.????????.new")
    token = uuid.uuid4().hex[:8]
    new, old = path.with_name(f".{path.name}.{token}.new"), path.with_name(f".{path.name}.{token}.old")
    new.mkdir()
    try:
        write(new)
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    except OSError as error:
        if error.errno and str(error.filename or new).startswith(str(new)):
            error.filename = str(path)
        raise
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be written ({short_reason(error)}): name another place.") from error
    finally:
        if old.exists() and not path.exists():  # stopped between the two renames
            os.replace(old, path)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(path: Path):
    if not path.exists():
        return
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file: name a folder to write.")
    foreign = next((file for file in sorted(path.iterdir()) if not OWN_FILES.fullmatch(file.name)), None)
    if foreign is not None:
        raise CheckpointError(
            f"{path} holds {foreign.name}, which is no part of a checkpoint and would be lost: name a new folder or an "
            "empty one, or move that away."
        )
    if path == Path.cwd():
        raise CheckpointError(f"{path} is the working folder, which cannot be replaced: name a folder inside it.")


def recover_folder(path: Path):
    """Puts back the folder that `write_folder` had moved aside when its process was killed, if it was."""
    path = path.resolve()
    for old in path.parent.glob(f".{path.name}.*.old"):
        if not path.exists():
            with suppress(FileNotFoundError):  # another process of the run was faster
                os.replace(old, path)


def read_card(file: Path, fix: str) -> dict:
    """The JSON object in a file. Raises CheckpointError if there is none; its message ends with `fix`."""
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is no JSON that can be read ({error}): {fix}.") from error
    if not isinstance(card, dict):
        raise CheckpointError(f"{file} holds no JSON object: {fix}.")
    return card


def is_main_process() -> bool:
    """Whether this process is the one that writes files (of several that `accelerate launch` started)."""
    return int(os.environ.get("RANK", "0")) == 0


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in place of those that FSDP has sharded; every process must take part."""
    return {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in tensors.items()}


def save_tensors(tensors: dict[str, Tensor], path: Path):
    """Writes tensors to a safetensors file; one that equals an earlier one is noted as its alias."""
    aliases = find_aliases(tensors)
    kept = {name: tensor for name, tensor in tensors.items() if name not in aliases}
    _save_file(kept, path, None, {"aliases": json.dumps(aliases)})


def save_shards(
    tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype | None = None, shard: int | None = None,
    alias: bool = True,
):  # fmt: skip
    """Writes model.safetensors, or shards of at most `shard` bytes and their index; each is cast as it is written."""
    aliases = find_aliases(tensors) if alias else {}
    shards, room = [{}], shard or SHARD_BYTES
    used = total = 0
    for name, tensor in tensors.items():
        if name in aliases:
            continue
        size = tensor.numel() * (dtype if dtype and tensor.is_floating_point() else tensor.dtype).itemsize
        if used and used + size > room:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used, total = used + size, total + size
    metadata = {"aliases": json.dumps(aliases)} if alias else {}
    if len(shards) == 1:
        return _save_file(shards[0], folder / "model.safetensors", dtype, metadata)
    files = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    for number, (file, part) in enumerate(zip(files, shards, strict=True)):
        _save_file(part, folder / file, dtype, {} if number else metadata)
    places = {name: file for file, part in zip(files, shards, strict=True) for name in part}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def find_aliases(tensors: dict[str, Tensor]) -> dict[str, str]:
    """{name: the earlier name of an equal tensor}."""
    aliases: dict[str, str] = {}
    seen: dict[tuple, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel() > 1:
            # the first numbers tell most tensors of one shape apart without reading the rest
            likeness = (tensor.shape, tensor.dtype, *tensor.detach().flatten()[:8].tolist())
            earlier = seen.setdefault(likeness, [])
            twin = next((other for other in earlier if torch.equal(tensors[other], tensor)), None)
            if twin is not None:
                aliases[name] = twin
            else:
                earlier.append(name)
    return aliases


def _save_file(tensors: dict[str, Tensor], path: Path, dtype: torch.dtype | None, metadata: dict[str, str]):
    written, places = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if dtype is not None and tensor.is_floating_point():
            whole, tensor = tensor, tensor.to(dtype)
            refuse_overflow(name, whole, tensor)
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in places:  # safetensors wants memory of its own
            tensor = tensor.clone()
        places.add(storage.data_ptr())
        written[name] = tensor
    save_file(written, path, metadata={"format": "pt", **metadata})
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets nobody else read it


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file, aliases resolved. Raises CheckpointError that names the file."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the checkpoint is not whole; copy or train it again.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            aliases = read_aliases(file.metadata())
        return tensors | {name: tensors[twin] for name, twin in aliases.items()}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}): copy it again.") from error


def check_tensors(expected: dict[str, Tensor], found: dict[str, Tensor], where: str | Path):
    """Raises CheckpointError naming every missing, unexpected or misshapen tensor."""
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    raise_problems(problems, where)
