"""Weight files: safetensors or PyTorch's `.bin`, in one file or in shards.

Names and shapes are known before a tensor is read, and tensors are read one after another, large ones row by row.
"""

import json
import math
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minivllava.errors import CheckpointError, short_reason

# older versions of transformers stored these beside the weights; every model computes them itself
CONSTANTS = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids|\b(attn|attention)\.(masked_)?bias)$")
LFS_POINTER = b"version https://git-lfs"  # how such a file begins
SHOWN = 50  # of the tensors that do not fit; a wrong config can have hundreds
SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """One stored tensor: where it is, and what it will be."""

    file: Path
    name: str  # in the file
    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None: integers, truth values, complex numbers, float8


class Weights:
    """The tensors of a checkpoint folder, by name; nothing but their shapes has been read.

    `spelling` turns a stored name into the one used here, if a layout has several spellings. Raises
    CheckpointError for weights that are missing, truncated, or more than tensors.
    """

    def __init__(self, folder: Path, spelling: Callable[[str], str] = str):
        self.entries: dict[str, Entry] = {}
        aliases: dict[str, str] = {}
        files = weight_files(folder)
        self.where = files[0] if len(files) == 1 else folder  # what messages name
        for file in files:
            for entry in _entries(file, aliases):
                name = spelling(entry.name)
                if CONSTANTS.search(name):
                    continue
                if name in self.entries:
                    raise CheckpointError(
                        f"{file} holds {entry.name}, and {self.entries[name].file.name} holds "
                        f"{self.entries[name].name}, which is the same tensor: take one away."
                    )
                self.entries[name] = entry
        self.entries |= {name: self.entries[twin] for name, twin in aliases.items() if twin in self.entries}

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, EllipsisType | slice, Tensor]]:
        """(name, which rows, tensor) of each name, file by file: `...` and the whole tensor, or of a large one some of
        its rows after others. Copy what you keep: a tensor is a view of its file."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.entries[name].file, []).append(name)
        for file, wanted in by_file.items():
            total = sum(_bytes(self.entries[name]) for name in wanted)
            room = total if _is_old_pickle(file) else min(256 << 20, max(4 << 20, total // 32))
            pieces = [(name, rows, size) for name in wanted for rows, size in _pieces(self.entries[name], room)]
            for portion in _portions(pieces, room):
                # Opened again for each portion: pages of a mapped file count as memory until it is closed.
                stored = _open(file)
                for name, rows in portion:
                    yield name, rows, stored(self.entries[name].name)[rows]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, safetensors before `.bin`. Raises CheckpointError."""
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        whole, index = folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            return _shards(index)
        shards = sorted(folder.glob(f"{stem}-*-of-*{suffix}"))
        if shards:
            total = int(re.search(r"-of-(\d+)", shards[0].name)[1])
            # not all at once: a file's name may say any number, and the first missing one ends it
            names = (f"{stem}-{number:05d}-of-{total:05d}{suffix}" for number in range(1, total + 1))
            return [_present(folder / name, f"{shards[0].name} is there") for name in names]
    raise CheckpointError(
        f"{folder} is not whole: model.safetensors or pytorch_model.bin (or shards and their index) is missing; "
        "copy it again."
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not names or not all(name and Path(name).name == name for name in names):
            raise ValueError("weight_map names no files, or some elsewhere")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no index of files in its folder: copy it again.") from error
    files = [_present(index.with_name(name), f"{index.name} names it") for name in sorted(names)]
    counts = {match[0] for match in (re.search(r"-of-\d+\.\w+$", name) for name in names) if match}
    stem = index.name.split(".")[0]
    unnamed = [file for count in counts for file in index.parent.glob(f"{stem}-*{count}") if file.name not in names]
    if unnamed:
        raise CheckpointError(
            f"{index} does not name {min(unnamed).name}, which is a shard of the same weights: it is not the index of "
            "these files; copy both again."
        )
    return files


def _present(file: Path, because: str) -> Path:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing, and {because}: copy it again.")
    return file


def _entries(file: Path, aliases: dict[str, str]) -> list[Entry]:
    """What a file holds; adds the names that it stores under another name to `aliases`."""
    with suppress(OSError), open(file, "rb") as opened:  # one that cannot be opened is named where it is read
        if opened.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointError(
                f"{file} is no file of weights but what Git LFS keeps in its place: run git lfs pull where it was "
                "cloned, and copy it again."
            )
    if file.suffix == ".bin":
        tensors = _load_bin(file)
        for name, tensor in tensors.items():
            if tensor.is_meta or tensor.layout != torch.strided:
                fault = "holds no numbers (it is on the meta device)" if tensor.is_meta else "is sparse"
                raise CheckpointError(f"{file}: {name} {fault}; save it again as a dense tensor with its numbers.")
        return [
            Entry(file, name, tuple(t.shape), t.dtype if t.dtype in SAFETENSORS_DTYPES.values() else None)
            for name, t in tensors.items()
        ]
    try:
        with safe_open(file, framework="pt") as opened:
            aliases |= read_aliases(opened.metadata())
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return [
                Entry(file, name, tuple(s.get_shape()), SAFETENSORS_DTYPES.get(s.get_dtype()))
                for name, s in slices.items()
            ]
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is truncated or no safetensors file ({error}): copy it again.") from error


def read_aliases(metadata: dict[str, str] | None) -> dict[str, str]:
    """The names that a safetensors file of ours stores under another name. Raises ValueError."""
    try:
        aliases = json.loads((metadata or {}).get("aliases", "{}"))
    except RecursionError as error:
        raise ValueError("aliases too deep") from error
    if not isinstance(aliases, dict) or not all(isinstance(name, str) for name in aliases.values()):
        raise ValueError("its aliases are no names")
    return aliases


def _open(file: Path) -> Callable[[str], Tensor]:
    """A function from a stored name to its tensor."""
    if file.suffix == ".bin":
        return _load_bin(file).pop
    return safe_open(file, framework="pt").get_tensor


def _load_bin(file: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=not _is_old_pickle(file))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is cut off, or holds more than tensors: reading that could execute code, so it was not read. "
            "Copy it again, or get the weights as safetensors."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{file} is truncated or no PyTorch file ({short_reason(error, 120)}): copy it again."
        ) from error
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{file} holds more than named tensors: name a folder of model weights alone.")
    return tensors


def _is_old_pickle(file: Path) -> bool:
    """Whether a `.bin` is from before PyTorch 1.6: such a file cannot be read in parts."""
    with open(file, "rb") as opened:
        return file.suffix == ".bin" and opened.read(2) != b"PK"


def refuse_overflow(name: str, tensor: Tensor, cast: Tensor):
    """Raises CheckpointError if numbers became infinite that were not, in a dtype with a smaller range."""
    smaller = cast.is_floating_point() and torch.finfo(cast.dtype).max < torch.finfo(tensor.dtype).max
    if not smaller or not cast.numel() or _largest(cast) < math.inf:
        return
    largest = _largest(tensor)
    if largest < math.inf:
        raise CheckpointError(
            f"{name} has numbers up to {largest:.3g}, too large for {str(cast.dtype).removeprefix('torch.')}: use "
            "bfloat16 or float32."
        )


def _largest(tensor: Tensor) -> float:
    """The largest size of a tensor's numbers, found without a copy of them."""
    return max(abs(end.item()) for end in tensor.aminmax())


def not_floating(entries: Iterable[Entry]) -> list[str]:
    """What is wrong with those stored tensors that are quantised, or were never weights, in words."""
    found = (entry.name for entry in entries if entry.dtype is None)
    return [f"{name} is quantised or holds no floating-point numbers, and these are needed" for name in found]


def raise_problems(problems: Sequence[str], where: str | Path):
    """Raises CheckpointError that lists what does not fit, if anything; many at once by layer, as in
    "missing layers.{0..3}.norm.weight"."""
    if problems:
        problems = problems if len(problems) <= SHOWN else _by_layer(problems)
        shown, rest = problems[:SHOWN], len(problems) - SHOWN
        listed = "; ".join(shown) + (f"; and {rest} more" if rest > 0 else "")
        raise CheckpointError(f"{where} does not fit its config: {listed}. Use the config it was trained with.")


def _by_layer(problems: Sequence[str]) -> list[str]:
    """Problems that differ in the first number of a tensor's name alone become one."""
    layers: dict[str, list[int]] = {}
    for problem in problems:
        number = re.search(r"(?<=\.)\d+(?=\.)", problem)
        kind = problem if number is None else f"{problem[: number.start()]}{{}}{problem[number.end() :]}"
        layers.setdefault(kind, []).extend([] if number is None else [int(number[0])])
    return [kind.replace("{}", _ranges(numbers), 1) for kind, numbers in layers.items()]


def _ranges(numbers: list[int]) -> str:
    """7 -> "7"; 0, 1, 2, 5 -> "{0..2,5}"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs]
    return texts[0] if len(numbers) == 1 else f"{{{','.join(texts)}}}"


def _pieces(entry: Entry, room: int) -> Iterator[tuple[EllipsisType | slice, int]]:
    """Which rows of a tensor are read together, and their bytes: `...` for all where they fit into `room`."""
    size = _bytes(entry)
    if size <= room:
        yield ..., size
        return
    row = size // entry.shape[0]
    rows = max(1, room // row)
    for first in range(0, entry.shape[0], rows):
        last = min(first + rows, entry.shape[0])
        yield slice(first, last), (last - first) * row


def _portions(pieces: list[tuple], room: int) -> Iterator[list[tuple]]:
    """Names and rows in order, cut where their sizes together pass `room`. pieces: (name, rows, size)."""
    portion, used = [], 0
    for name, rows, size in pieces:
        if portion and used + size > room:
            yield portion
            portion, used = [], 0
        portion.append((name, rows))
        used += size
    if portion:
        yield portion


def _bytes(entry: Entry) -> int:
    return math.prod(entry.shape) * (entry.dtype.itemsize if entry.dtype else 8)
