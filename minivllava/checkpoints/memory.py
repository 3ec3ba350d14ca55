"""Whether a model fits into memory, asked before any of it is loaded."""

from pathlib import Path

import torch

from minivllava.errors import CheckpointError


def require_memory(weights: int, dtype: torch.dtype, device, where: str | Path):
    """Raises CheckpointError if this many weights do not fit, saying what they need and what is free."""
    what = f"{weights:,} weights as {str(dtype).partition('.')[2]}"
    require_bytes(weights * dtype.itemsize, what, device, where)


def require_bytes(needed: int, what: str, device, where: str | Path):
    """Raises CheckpointError if this many bytes are not free on a device; `what` needs them."""
    free = free_memory(device)
    if free is not None and needed > free:
        raise CheckpointError(
            f"{where} needs {_gigabytes(needed)} of memory ({what}) and {_gigabytes(free)} is free on {device}: load "
            "it with a smaller dtype, or where there is more memory."
        )


def free_memory(device) -> int | None:
    """Bytes that can still be allocated on a device; None if that cannot be told."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type not in ("cpu", "mps"):
        return None
    import psutil

    bounds = [psutil.virtual_memory().available]
    limit = Path("/sys/fs/cgroup/memory.max")  # a container may have less than its machine
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        used = int(limit.with_name("memory.current").read_text())
        statistics = dict(line.split() for line in limit.with_name("memory.stat").read_text().splitlines())
        bounds.append(int(text) - used + int(statistics.get("inactive_file", 0)))
    if hasattr(psutil, "RLIMIT_AS"):  # `ulimit -v`
        process = psutil.Process()
        soft, _ = process.rlimit(psutil.RLIMIT_AS)
        if soft >= 0:
            bounds.append(soft - process.memory_info().vms)
    return max(0, min(bounds))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
