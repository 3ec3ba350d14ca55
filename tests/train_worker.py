"""A process of its own for test_training.py: trains as told by a JSON job, on as many ranks as started it.

python train_worker.py JOB     JOB: {"tasks": {NAME: TrainingConfig fields}, "records", "out", "die_at"}
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny import tiny_config, tiny_languagebind, tiny_tokenizer, tiny_vllava, training

from minivllava.checkpoints.storage import is_main_process
from minivllava.data.records import load_records
from minivllava.training import align, stages
from minivllava.training.loop import train


def run_task(name: str, records, config, folder: Path, die_at: int | None = None):
    """Trains a fresh tiny model for one task, killed at step `die_at` if given. Returns (model, log)."""

    def deadly(model, task, *arguments, **options):
        def sampler(step):
            if step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return task.sampler(step)

        return train(model, replace(task, sampler=sampler), *arguments, **options)

    stages.train = align.train = deadly if die_at is not None else train
    options = {"device": "cpu", "progress": False}
    if name in ("stage1", "stage2"):
        model = tiny_vllava()
        log = getattr(stages, name)(model, records, config, folder, **options)
    else:
        model, tokenizer = tiny_languagebind(), tiny_tokenizer()
        column = name.replace("align_", "") + "s"
        records = records.filter(lambda row: bool(row[column]))
        log = getattr(align, name)(model, records, tokenizer, tiny_config(len(tokenizer)), config, folder, **options)
    return model, log


if __name__ == "__main__":
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text())
    out = Path(job["out"])
    for task_name, fields in job["tasks"].items():
        trained, lines = run_task(
            task_name, load_records(job["records"]), training(**fields), out / task_name, job.get("die_at")
        )
        if is_main_process():
            save_file(
                {name: tensor.clone() for name, tensor in trained.state_dict().items()},
                out / f"{task_name}.safetensors",
            )
            (out / f"{task_name}.json").write_text(json.dumps(lines))
    if dist.is_initialized():  # a process that exits while connected may abort
        dist.destroy_process_group()
