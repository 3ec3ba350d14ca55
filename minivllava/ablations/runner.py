"""The grid of a study: arms and seeds, each cell computed once and kept.

runs/ablations/
    cells/KEY.json    finished cells; KEY is the hash of a cell's settings, seed and shipped weights
    parts/ models/    what cells start from, trained once
    unfinished/       training states of cells that were interrupted
    locks/            which process computes what

Several processes share a grid: each takes the next cell that nobody has locked. That is how `--processes` and
`accelerate launch` use several cores or GPUs, or fill one GPU with all seeds of an arm at once. A cell computes the
same in any process, so the grid has the same numbers however it was shared; a process that dies leaves its cell to
the others.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import torch
from filelock import FileLock, Timeout

from minivllava.ablations.cell import run_cell
from minivllava.ablations.parts import Parts
from minivllava.ablations.settings import Settings, cell_key
from minivllava.errors import CheckpointError, ConfigError, DivergedError
from minivllava.files import write_json


@dataclass(frozen=True)
class Cell:
    """One arm's settings and a seed; `arm` is a name for people and not part of the key."""

    arm: str
    settings: Settings
    seed: int
    key: str


def grid(arms: dict[str, Settings], seeds: int, weights: str) -> list[Cell]:
    """All cells, seed by seed, so that an unfinished study has whole seeds. weights: of the shipped parts."""
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least 1 is needed.")
    return [
        Cell(arm, settings, seed, cell_key(settings, seed, weights))
        for seed in range(seeds)
        for arm, settings in arms.items()
    ]


def run_grid(cells: list[Cell], parts: Parts, processes: int = 1, known: dict[str, dict] | None = None) -> dict:
    """Computes what is neither in the store nor among the `known` results. Returns every cell's result by its key.

    processes: how many share the work; 1 computes here. Raises what a cell raises; what is finished is kept.
    """
    found = dict(known or {})
    todo = list({cell.key: cell for cell in cells if cell.key not in found}.values())
    todo = [cell for cell in todo if read_cell(parts.store, cell.key) is None]
    for cell in todo:  # before worlds are made, which takes minutes
        parts.check(cell.settings)
    threads = torch.get_num_threads()
    helpers = _start_helpers(min(processes, len(todo)) - 1, todo, parts)
    try:
        _work(todo, parts)
        for helper in helpers:  # nothing is left to do, and one that is ended while it leaves writes a traceback
            helper.join()
    finally:
        torch.set_num_threads(threads)
        for helper in helpers:
            helper.terminate()
            helper.join()
    keys = {cell.key for cell in cells}
    return {key: found[key] if key in found else read_cell(parts.store, key) for key in keys}


def read_cell(store: Path, key: str) -> dict | None:
    """A finished cell, or None. Raises CheckpointError if its file cannot be read."""
    file = Path(store) / "cells" / f"{key}.json"
    if not file.exists():
        return None
    try:
        cell = json.loads(file.read_text(encoding="utf-8"))
        if not is_cell(cell) or cell["key"] != key:
            raise ValueError("it holds no cell of this name")
        return cell
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): delete it, and its cell is computed again.") from error


def is_cell(value) -> bool:
    """Whether a JSON value is a finished cell, as `run_cell` returns it."""
    return isinstance(value, dict) and {"key", "seed", "metrics", "n", "baselines", "seconds"} <= value.keys()


def write_cell(store: Path, result: dict):
    """Keeps a finished cell; its file is whole or not there."""
    write_json(Path(store) / "cells" / f"{result['key']}.json", result)


def stand_alone() -> tuple[int, int]:
    """Makes each process of `accelerate launch` or torchrun work for itself. Returns (its number, how many).

    They share cells, not batches: what they were told of each other is taken out of their environment, so that
    training in one of them waits for no other. On a machine with GPUs each keeps to one.
    """
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        _keep_to_one_gpu(int(os.environ.get("LOCAL_RANK", rank)))
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
    return rank, ranks


def _keep_to_one_gpu(number: int):
    """Shows this process only one GPU; CUDA must not have been used before."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [name for name in named.split(",") if name] if named else [str(i) for i in range(torch.cuda.device_count())]
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]


def _start_helpers(count: int, todo: list[Cell], parts: Parts) -> list:
    """Processes that work on the same cells. Each, and this one, gets its share of the cores."""
    if count < 1:
        return []
    threads = max(1, torch.get_num_threads() // (count + 1))
    torch.set_num_threads(threads)
    context = multiprocessing.get_context("spawn")  # a forked process could not use the GPU
    arguments = (threads, todo, parts.folder, parts.store, parts.options["device"])
    # not daemons, which could not make a world: that takes processes of their own
    helpers = [context.Process(target=_help, args=(n, *arguments)) for n in range(1, count + 1)]
    for helper in helpers:
        helper.start()
    return helpers


def _help(number: int, threads: int, todo: list[Cell], folder: Path, store: Path, device: str | None):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that processes of its own end with it
    Thread(target=_end_with_parent, daemon=True).start()
    if device != "cpu":
        _keep_to_one_gpu(number)
    torch.set_num_threads(threads)
    _work(todo, Parts(folder, store, device, progress=False))


def _end_with_parent():
    """Ends this process if the one that started it was killed and could not end it."""
    parent = multiprocessing.parent_process()
    if parent is None:  # not started by another one
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _work(todo: list[Cell], parts: Parts):
    """Computes the cells that no other process is computing, then waits for the rest, or takes over abandoned ones."""
    from tqdm.auto import tqdm

    with tqdm(total=len(todo), desc="cells", unit="cell", disable=not (parts.progress and todo)) as bar:
        for cell in _free_cells(todo, parts.store):
            bar.set_postfix_str(f"{cell.arm}, seed {cell.seed}")
            try:
                result = run_cell(cell.settings, cell.seed, parts)
            except DivergedError as error:
                raise DivergedError(
                    f"{cell.arm}, seed {cell.seed}: {error} No seed is left out of a study, so change the recipe of "
                    "all arms, e.g. --set stage2.learning_rate*=0.5."
                ) from error
            write_cell(parts.store, result)
            bar.n = sum(read_cell(parts.store, other.key) is not None for other in todo)
            bar.refresh()


def _free_cells(todo: list[Cell], store: Path) -> Iterator[Cell]:
    """Cells to compute, each locked while it is; first those that are free, then those that others gave up."""
    (store / "locks").mkdir(parents=True, exist_ok=True)
    for patience in (0, -1):  # first do not wait; then wait without limit
        for cell in todo:
            try:
                with FileLock(store / "locks" / f"cell-{cell.key}.lock", timeout=patience):
                    if read_cell(store, cell.key) is None:
                        yield cell
            except Timeout:
                continue
