"""The one training loop: AdamW, warm-up and cosine, clipping, accumulation, exact resume; on `accelerate`.

A run is a function of (config, step): which samples step i takes, its learning rate and its random seed all
follow from i. So a run that was stopped continues to the same weights as one that never was, and N processes
take the same steps as one, except that each draws its own dropout and hidden patches. Each batch's loss is the sum
over its learned tokens divided by their number in the whole batch, however it is cut into processes and accumulation
steps; the original's trainer averages the means of these parts, so that tokens of short answers weigh more.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minivllava.errors import ConfigError, DivergedError
from minivllava.models.kv_cache import release
from minivllava.run_config import Preset, TrainingConfig
from minivllava.training.state import LogWindow, State


@dataclass
class Task:
    """What a training step does: which samples, how they form a batch, and its loss."""

    sampler: Callable[[int], np.ndarray]  # step -> indices of that step's samples
    collate: Callable[[Sequence[int]], Any]  # indices -> a batch with `.to(device)`
    count: Callable[[Any], int]  # learned tokens (or pairs) of a batch
    loss: Callable[[nn.Module, Any], Tensor]  # of a batch, summed over what `count` counts
    lengths: np.ndarray | None = None  # of each sample; accumulation steps are cut along them to pad less
    ahead: bool = False  # whether the next step's batches are collated while this one is computed, also on a CPU
    data: str = ""  # a hash of the samples and their order: a state of training on others is refused


def shuffled_batches(samples: int, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """A sampler that walks through one random order of all samples after another, without end."""

    def sampler(step: int) -> np.ndarray:
        first = step * batch_size
        epochs = range(first // samples, (first + batch_size - 1) // samples + 1)
        stream = np.concatenate([np.random.default_rng([seed, epoch]).permutation(samples) for epoch in epochs])
        offset = first - epochs[0] * samples
        return stream[offset : offset + batch_size]

    return sampler


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up over the first `warmup` share of the steps, then a cosine to zero."""
    warmup = max(1, math.ceil(config.warmup * config.steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def scheduled(config: TrainingConfig, records: int, epochs: float) -> TrainingConfig:
    """The recipe for as many steps as `epochs` passes over `records` records take. Where there are fewer than a
    batch takes, it has those, cut to a number that divides into processes and accumulation steps, but at least one for
    each of these."""
    pieces = config.accumulation * int(os.environ.get("WORLD_SIZE", "1"))  # each batch is cut into this many
    batch = config.batch_size if config.batch_size <= records else max(pieces, records // pieces * pieces)
    return replace(config, batch_size=batch, steps=max(1, math.ceil(epochs * records / batch)))


def freeze_all_but(model: nn.Module, *parts: nn.Module):
    """Lets exactly these parts of a model learn."""
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)


def check_precision(preset: Preset, stages: Sequence[str]):
    """Raises ConfigError unless all stages that one process runs have one precision: `accelerate` keeps the first one
    it is given."""
    found = {stage: getattr(preset, stage).precision for stage in stages}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{stage}.precision is {precision}" for stage, precision in found.items())
        raise ConfigError(f"One run has one precision, and here {listed}: give all of these the same.")


def accelerator_for(config: TrainingConfig, device: str | None):
    """`accelerate` on the device that training uses: an accelerator if there is one, unless `device` is "cpu".

    Raises ConfigError for a device that is not there, and for a second precision, or the CPU after an accelerator, in
    one process.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized

    if device not in (None, "cpu", "cuda", "mps", "xpu"):
        raise ConfigError(
            f"Training runs on the CPU or on an accelerator, and {device!r} is neither: use cpu, or leave it out; "
            "CUDA_VISIBLE_DEVICES chooses among GPUs."
        )
    begun = AcceleratorState() if is_initialized() else None
    try:
        accelerator = Accelerator(mixed_precision=config.precision, cpu=device == "cpu")
    except ValueError as error:
        if begun is None:
            raise
        raise ConfigError(
            f"Training in this process has begun on {begun.device.type} with precision {begun.mixed_precision}, and "
            f"cannot go on with precision {config.precision} on {device or begun.device.type}: start a new process."
        ) from error
    if device not in (None, accelerator.device.type):
        raise ConfigError(f"This machine has no {device}: take --device out, or use --device cpu.")
    return accelerator


def train(
    model: nn.Module,
    task: Task,
    config: TrainingConfig,
    folder: str | Path,
    label: str = "train",
    device: str | None = None,
    progress: bool = True,
) -> list[dict]:
    """Trains the parameters that require a gradient, in place.

    folder: where the state is kept while the run is unfinished (`state/`, every `checkpoint_every` steps);
    a run that finds a state continues from it. device: "cpu" keeps off an accelerator that is there.

    Returns the log: dicts of `step`, `loss` (mean since the last), `learning_rate`, `grad_norm`, `seconds`,
    `tokens` (learned), `waiting` (share of the time spent on data). Raises CheckpointError when the state
    belongs to another run, ConfigError when the batch does not divide or there is no such device, DivergedError when
    the loss is no longer finite.
    """
    from tqdm.auto import tqdm

    accelerator = accelerator_for(config, device)
    _check_batch_size(config, accelerator.num_processes)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    fused = True if accelerator.device.type == "cuda" else None  # one kernel for all weights
    optimizer = torch.optim.AdamW(_groups(parameters, config), lr=config.learning_rate, betas=config.betas, fused=fused)
    release(model)  # training needs the memory of the cache that the last answer left
    model.train()
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    parameters = {n: p for n, p in accelerator.unwrap_model(wrapped).named_parameters() if p.requires_grad}
    state = State(Path(folder) / "state", parameters, optimizer, config, task.data, accelerator.scaler)
    window = LogWindow()
    start, log = state.load(window)

    bar = tqdm(
        total=config.steps, initial=start, desc=label, unit="step",
        disable=not (progress and accelerator.is_main_process),
    )  # fmt: skip

    batches = _batches(task, config, accelerator, range(start, config.steps))
    for step in range(start, config.steps):
        torch.manual_seed(((config.seed * 1_000_003) + step) * 1_009 + accelerator.process_index)
        rate = _set_learning_rate(optimizer, step, config)
        began = time.perf_counter()
        micro_batches = next(batches)
        window.waiting += time.perf_counter() - began

        count = torch.tensor(sum(task.count(batch) for batch in micro_batches), device=accelerator.device)
        learned = accelerator.reduce(count, "sum").clamp(min=1)
        total = _accumulate(accelerator, wrapped, task, micro_batches, learned)
        norm = accelerator.clip_grad_norm_(list(parameters.values()), config.clip_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        window.add(float(accelerator.reduce(total, "sum") / learned), int(learned), float(norm))
        if not math.isfinite(window.losses[-1]):
            raise DivergedError(f"{label}: the loss is not finite at step {step}; lower the learning rate.")
        bar.update()
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            log.append({"step": step + 1, "learning_rate": rate, **window.close()})
            bar.set_postfix(loss=f"{log[-1]['loss']:.3f}", lr=f"{rate:.1e}")
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
            state.save(step + 1, log, window)
            accelerator.wait_for_everyone()
    bar.close()
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # or the model's forward stays under autocast
    model.eval()
    return log


def _check_batch_size(config: TrainingConfig, processes: int):
    """Raises ConfigError unless a batch divides into processes and accumulation steps."""
    if config.batch_size % (processes * config.accumulation):
        raise ConfigError(
            f"batch_size {config.batch_size} is not a multiple of {processes} process(es) x {config.accumulation} "
            "accumulation step(s): set another batch_size or accumulation, or start another number of processes."
        )


def _set_learning_rate(optimizer: torch.optim.Optimizer, step: int, config: TrainingConfig) -> float:
    """Sets every group's learning rate for a step; returns the schedule's, of which each group takes its share."""
    rate = learning_rate(step, config)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    return rate


def _accumulate(accelerator, model: nn.Module, task: Task, micro_batches: list, learned: Tensor) -> Tensor:
    """Adds up the gradients of a batch's micro-batches, and returns the sum of their losses.

    learned: how many tokens are learned in the whole batch, by all processes, which every loss is divided by.
    """
    total = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(micro_batches):
        last = number == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(model), accelerator.autocast():
            loss = task.loss(model, batch.to(accelerator.device))
            # gradients are averaged over processes; the sum is wanted
            accelerator.backward(loss / learned * accelerator.num_processes)
        total += loss.detach()
    return total


def _batches(task: Task, config: TrainingConfig, accelerator, steps: range) -> Iterator[list]:
    """This process's part of each step's batch, cut into micro-batches (accumulation steps) and collated."""
    ranks, rank = accelerator.num_processes, accelerator.process_index

    def micro_batches_of(step: int) -> list:
        indices = task.sampler(step)
        if task.lengths is not None:
            indices = indices[np.argsort(task.lengths[indices], kind="stable")]
        return [task.collate(some) for some in np.array_split(indices[rank::ranks], config.accumulation)]

    ahead = task.ahead or accelerator.device.type == "cuda"  # a GPU leaves the processor free
    return _ahead(micro_batches_of, steps) if ahead else map(micro_batches_of, steps)


def _ahead(micro_batches_of: Callable[[int], list], steps: range) -> Iterator[list]:
    """What `micro_batches_of` gives for each step, made in another thread while the previous step is computed."""
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for step in steps:
            micro_batches = coming.result() if coming else micro_batches_of(step)
            coming = thread.submit(micro_batches_of, step + 1) if step + 1 in steps else None
            yield micro_batches


def _groups(parameters: dict[str, nn.Parameter], config: TrainingConfig) -> list[dict]:
    """Weight decay for matrices and tables (embeddings, positions, queries), none for norms, biases and scales. The
    projector may have a learning rate of its own: `share` is a group's learning rate divided by the schedule's."""
    share = config.projector_learning_rate / config.learning_rate if config.projector_learning_rate else 1.0
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((share if name.startswith("projector.") else 1.0, decay), []).append(parameter)
    return [{"params": group, "share": share, "weight_decay": decay} for (share, decay), group in groups.items()]
