"""`minivllava bench`: what things cost on this machine, beside their peers in the same run.

shipped.py   stage 2 with and without cached features; the first answer of a new process
peers.py     the same weights and inputs through `transformers`: forward, backward, prefill, decode
kernels.py   where a GPU's time goes
gpu.py       the published sizes: stage 1, stage 2, prefill and decode, beside what the GPU could do at best
timing.py    fair times: in turns, warmed up, medians; what this machine can do
"""

from minivllava.bench.shipped import run_bench

__all__ = ["run_bench"]
