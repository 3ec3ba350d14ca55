"""Where a GPU's time goes: its kernels by what they are for."""

import re
from collections.abc import Callable

import torch

from minivllava.bench.timing import seconds_of

FAMILIES = {  # by the names of kernels, which name all that torch.compile fused; the first that matches counts
    "fused by torch.compile": r"triton_poi_|triton_(?!.*(_b?mm_|_safe_softmax_))",  # triton_poi_: elementwise alone
    "attention": r"fmha|flash|sdpa|attention|_bmm_|_safe_softmax_",
    "products": r"gemm|gemv|nvjet|cutlass|splitk|_mm_",
    "optimiser": r"adam|multi_tensor",
    "copies": r"memcpy|memset|copy|CatArray",
    "other": r"",
}
LONGEST = 40  # kernels that are listed by name: nearly all of the time


def kernels(run: Callable[[], object], device: torch.device) -> dict:
    """One call on a CUDA device, taken apart: `ms` by family, the share of the call that the GPU was `busy`, and the
    `longest` kernels as [name, ms, how often]. A GPU that is not busy waits for Python, or for itself at a sync.
    """
    from torch.profiler import ProfilerActivity, profile

    run()
    seconds = seconds_of(run, device)  # without the profiler, which slows it down
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        seconds_of(run, device)
    found = {event.key: (event.self_device_time_total / 1000, event.count) for event in trace.key_averages()}
    found = {name: of for name, of in found.items() if of[0] > 0}
    families = dict.fromkeys(FAMILIES, 0.0)
    for name, (ms, _) in found.items():
        families[family(name)] += ms
    longest = sorted(found.items(), key=lambda kernel: -kernel[1][0])[:LONGEST]
    return {
        "ms": families,
        "busy": sum(families.values()) / (1000 * seconds),
        "longest": [[name[:100], ms, count] for name, (ms, count) in longest],
    }


def family(kernel: str) -> str:
    """What a kernel is for, by its name."""
    return next(name for name, pattern in FAMILIES.items() if re.search(pattern, kernel, re.IGNORECASE))
