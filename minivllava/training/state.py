"""What an unfinished run keeps, so that it continues to the same weights and the same log."""

import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from minivllava.checkpoints.storage import (
    check_tensors,
    gathered,
    load_tensors,
    recover_folder,
    save_tensors,
    write_folder,
)
from minivllava.errors import CheckpointError
from minivllava.overrides import to_dict
from minivllava.run_config import TrainingConfig

# fields that change nothing in the weights that a run comes to
WITHOUT_EFFECT = ("checkpoint_every", "log_every", "recomputed_layers", "recompute_elementwise")


def decisive(config: TrainingConfig) -> dict:
    """The fields that a run's weights follow from, as JSON types."""
    unused = () if config.lora_rank else ("lora_alpha", "lora_dropout")
    return {name: value for name, value in to_dict(config).items() if name not in (*WITHOUT_EFFECT, *unused)}


class LogWindow:
    """What happened since the last line of the log."""

    def __init__(self):
        self.losses: list[float] = []
        self.tokens, self.norm, self.waiting, self.began = 0, 0.0, 0.0, time.perf_counter()

    def add(self, loss: float, tokens: int, norm: float):
        self.losses.append(loss)
        self.tokens += tokens
        self.norm = norm

    def state(self) -> dict:
        """What has been added so far, as JSON types."""
        seconds = time.perf_counter() - self.began
        return {"losses": self.losses, "tokens": self.tokens, "waiting": self.waiting, "seconds": seconds}

    def resume(self, state: dict):
        self.losses, self.tokens, self.waiting = state["losses"], state["tokens"], state["waiting"]
        self.began = time.perf_counter() - state["seconds"]

    def close(self) -> dict:
        """The line of the log; begins the next one."""
        seconds = time.perf_counter() - self.began
        line = {
            "loss": sum(self.losses) / len(self.losses),
            "grad_norm": self.norm,
            "seconds": seconds,
            "tokens": self.tokens,
            "waiting": self.waiting / seconds,
        }
        self.losses, self.tokens, self.waiting, self.began = [], 0, 0.0, time.perf_counter()
        return line


class State:
    """An unfinished run on disk: trained weights and AdamW's moments (safetensors), step and log (JSON)."""

    def __init__(
        self, folder: Path, parameters: dict[str, nn.Parameter], optimizer, config: TrainingConfig, data: str, scaler
    ):  # fmt: skip
        self.folder, self.parameters, self.optimizer = folder, parameters, optimizer
        self.scaler = scaler  # of the loss; only with fp16
        self.config, self.data = decisive(config), data

    def save(self, step: int, log: list[dict], window: LogWindow):
        moments = {
            f"{key}.{name}": self.optimizer.state[p][key]
            for name, p in self.parameters.items()
            if p in self.optimizer.state  # a part that got no gradient yet has no moments
            for key in ("exp_avg", "exp_avg_sq")
        }
        counts = {
            name: float(self.optimizer.state[p]["step"])
            for name, p in self.parameters.items()
            if p in self.optimizer.state
        }
        card = {"step": step, "config": self.config, "data": self.data, "updates": counts, "log": log}
        card["window"] = window.state()
        if self.scaler is not None:
            card["scaler"] = self.scaler.state_dict()
        weights, moments = gathered(self.parameters), gathered(moments)

        def write(folder: Path):
            save_tensors(weights, folder / "weights.safetensors")
            save_tensors(moments, folder / "optimizer.safetensors")
            (folder / "state.json").write_text(json.dumps(card))

        write_folder(self.folder, write)

    def load(self, window: LogWindow) -> tuple[int, list[dict]]:
        """(first step to do, log so far). Restores the weights, AdamW's moments and the open line of the log."""
        recover_folder(self.folder)
        if not self.folder.exists():
            return 0, []
        try:
            card = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{self.folder} cannot be read ({error}): delete it to start over.") from error
        known = to_dict(TrainingConfig()) | card["config"]  # a field that is newer than the state has its default
        changed = [key for key in self.config if known.get(key) != self.config[key]]
        changed += ["data"] if card.get("data") != self.data else []
        if changed:
            raise CheckpointError(
                f"{self.folder} is of a run with another {', '.join(changed)}: give this run another name, or delete "
                "that folder to start over."
            )
        weights = load_tensors(self.folder / "weights.safetensors")
        check_tensors(self.parameters, weights, self.folder)
        moments = load_tensors(self.folder / "optimizer.safetensors")
        fused = self.optimizer.defaults["fused"]  # then AdamW keeps its count of steps on the weights' device
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(_placed_like(parameter, weights[name]))
                if name in card["updates"]:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(card["updates"][name], device=parameter.device if fused else "cpu"),
                        # copies: equal tensors are stored once, and must not remain one tensor
                        **{
                            k: _placed_like(parameter, moments[f"{k}.{name}"].clone())
                            for k in ("exp_avg", "exp_avg_sq")
                        },
                    }
        if self.scaler is not None:
            self.scaler.load_state_dict(card["scaler"])
        window.resume(card["window"])
        return card["step"], card["log"]


def _placed_like(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """A whole tensor as the parameter is: on its device, and sharded if FSDP has sharded the parameter."""
    tensor = tensor.to(parameter.device)
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor
