"""Fair times, and what the machine can do at best."""

import time
from collections.abc import Callable
from statistics import median, quantiles

import torch

# dense bf16 FLOPs a second, by the makers' data sheets; SXM if there are several
PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12,
    "L4": 121e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip

PEER = "transformers"
H100 = PEAKS["H100"], 3.35e12  # FLOPs and bytes a second, by the data sheet


def synchronise(device: torch.device):
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable, device: torch.device) -> float:
    """How long one call takes, until the device has done it."""
    synchronise(device)
    began = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - began


def in_turns(runs: dict[str, Callable], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each run, one after the other in each round, so that a busy machine is busy for all of them.

    A first round that is not counted warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            took = seconds_of(run, device)
            if number:
                seconds[name].append(took)
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict:
    """`ms`: each run's median; `ratio`: how many times as long the PEER takes, the median over rounds; `between`: the
    quartiles of these. The last two are empty if the peer did not run."""
    row = {"ms": {name: 1000 * median(times) for name, times in seconds.items()}, "ratio": {}, "between": {}}
    for name, times in seconds.items():
        if name == PEER or PEER not in seconds:
            continue
        rounds = [theirs / ours for ours, theirs in zip(times, seconds[PEER], strict=True)]
        row["ratio"][name] = median(rounds)
        if len(rounds) > 1:
            low, _, high = quantiles(rounds, n=4, method="inclusive")
            row["between"][name] = [low, high]
    return row


def copy_bandwidth(device: torch.device, size: int = 2**31) -> float:
    """Bytes read plus bytes written per second, of the fastest of ten large copies within the device's memory."""
    source = torch.ones(size // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(in_turns({"copy": lambda: target.copy_(source)}, 10, device)["copy"])


def product_rate(device: torch.device, dtype: torch.dtype, side: int = 8192) -> float:
    """FLOPs a second of the fastest of ten large matrix products of random numbers."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(in_turns({"product": lambda: a @ b}, 10, device)["product"])


def peak_rate(device: torch.device) -> float | None:
    """The data sheet's dense bf16 FLOPs a second of this GPU; None for one that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in PEAKS.items() if part in name), None)
