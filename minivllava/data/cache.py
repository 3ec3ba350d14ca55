"""What frozen encoders make of each file, computed once and memory-mapped.

The encoders never change in stages 1 and 2, so neither do their features. They are kept in float32 and are
the same numbers that the encoder would give again.
"""

import errno
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from minivllava.config import ModelConfig
from minivllava.data.build import cache_dir, cores
from minivllava.data.dataset import load_pixels
from minivllava.errors import ConfigError, MediaError
from minivllava.files import replacing

MANY = 500  # files: with this many, processes are worth their start
VERSION = 2  # raise it when decoding, preprocessing or the file's layout changes: old files are then not reused


class MediaCache:
    """One array per file, all of one shape, in a memory-mapped .npy file. It is read like a dict of tensors."""

    def __init__(self, array: np.ndarray, rows: dict[str, int]):
        self.array, self.rows = array, rows

    def __getitem__(self, path: str) -> Tensor:
        # a copy: a tensor over the map itself would be read-only, and warn
        return torch.from_numpy(self.array[self.rows[path]].copy())

    def __len__(self) -> int:
        return len(self.rows)


@torch.no_grad()
def cache_media(
    files: list[str],
    kind: str,
    config: ModelConfig,
    encode: Callable[[Tensor], Tensor] | None = None,
    fingerprint: str = "",
    batch_size: int = 32,
    dtype: str = "float32",
    progress: bool = True,
) -> MediaCache:
    """Pixels of every file (or `encode(pixels)` of each batch), from the cache if it has them.

    kind: "image" or "video". fingerprint: what `encode` is, e.g. `weights_fingerprint(encoder)`. The cache's key is
    made of the fingerprint, the preprocessing and its VERSION, and each file's path, size and time of change. The cache
    appears under its name only when it is complete; if several processes ask for it, one makes it and the others wait.
    Raises MediaError naming a file that is missing or broken, ConfigError if the disk has too little room.
    """
    from tqdm.auto import tqdm

    files = sorted(files)  # the same files in another order are the same cache
    vision = config.vision(kind)
    stamps = [_stamp(path) for path in files]
    how = [vision.image_size, vision.mean, vision.std, config.aspect, config.frame_sampling, config.video.frames, dtype]
    how += [] if config.antialias else ["not antialiased"]
    how += [] if config.clip_resize == "bilinear" else [config.clip_resize]
    key = json.dumps([VERSION, kind, *how, fingerprint, stamps])
    name = "features" if encode else "pixels"
    path = cache_dir() / name / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.npy"
    rows = {file: row for row, file in enumerate(files)}
    if not files:
        return MediaCache(np.zeros(0), rows)
    if not path.exists():
        load = partial(load_pixels, kind=kind, config=config, frames=config.video.frames)
        bar = tqdm(total=len(files), desc=f"{kind} {name}", unit="file", disable=not progress, leave=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        with bar, FileLock(path.with_suffix(".lock")):  # one process fills it, the others wait
            if not path.exists():
                for part in path.parent.glob(f".{path.name}.*.part"):  # of processes that were killed
                    part.unlink(missing_ok=True)
                _fill(path, len(files), _decoded(files, load, batch_size), encode, dtype, bar)
    return MediaCache(np.load(path, mmap_mode="r"), rows)


def _stamp(path: str) -> tuple[str, int, int]:
    """A file's path, size and time of change. Raises MediaError for one that is not there."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise MediaError(f"{path}: {error.strerror.lower()}: check the path and the media folder.") from error
    return os.path.abspath(path), stat.st_size, stat.st_mtime_ns


def _fill(path: Path, rows: int, batches: Iterator[Tensor], encode: Callable | None, dtype: str, bar):
    """Writes what each batch of pixels becomes, one row a file."""
    array, first = None, 0
    with replacing(path) as part:
        for pixels in batches:
            values = (encode(pixels) if encode else pixels).cpu().float().numpy().astype(dtype)
            if array is None:
                array = _new_array(part, dtype, (rows, *values.shape[1:]))
            array[first : first + len(values)] = values
            first += len(values)
            bar.update(len(values))
        array.flush()


def _new_array(file: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A memory-mapped array that has its room on the disk already: writing to a map kills the process if there is none.

    Raises ConfigError if there is too little.
    """
    needed, free = math.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(file.parent).free
    reason = os.strerror(errno.ENOSPC)
    if needed <= free:
        try:
            array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
            if hasattr(os, "posix_fallocate"):
                with open(file, "r+b") as opened:
                    os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
            return array
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            reason = error.strerror
    raise ConfigError(
        f"{file.parent} cannot take the {file.parent.name} of {shape[0]} files ({reason}): {needed:,} bytes are "
        f"needed, {free:,} are free; delete what you can, or set MINIVLLAVA_CACHE to a folder on another disk."
    )


def _decoded(files: list[str], load: Callable[[str], Tensor], batch_size: int) -> Iterator[Tensor]:
    """Pixels of each `batch_size` files, in order, stacked; the next ones are decoded meanwhile.

    Threads keep two cores busy, and no more: all the steps between two calls of the decoder need Python's lock. So
    processes decode MANY files or more if there are more cores, and if forking needs no main guard.
    """
    alone = multiprocessing.current_process().daemon or sys.platform != "linux" or cores() <= 2
    if len(files) < MANY or alone:
        workers = ThreadPoolExecutor(cores())
    else:  # with one thread each: a forked process does not have the threads that torch counts on
        context = multiprocessing.get_context("fork")
        workers = ProcessPoolExecutor(cores(), context, torch.set_num_threads, (1,))
    with workers:
        coming = None
        for first in range(0, len(files) + batch_size, batch_size):
            decoded = coming
            coming = [workers.submit(_array, load, path) for path in files[first : first + batch_size]]
            if decoded:
                yield torch.from_numpy(np.stack([future.result() for future in decoded]))


def _array(load: Callable[[str], Tensor], path: str) -> np.ndarray:
    return load(path).numpy()  # tensors would go between processes as open files


def weights_fingerprint(module: torch.nn.Module) -> str:
    """A hash of every weight: it changes whenever any of them does."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:20]
