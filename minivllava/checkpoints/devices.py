"""Devices and dtypes of weights, by name."""

import torch

from minivllava.errors import ConfigError, short_reason


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype by its name, e.g. "bfloat16". Raises ConfigError."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"There is no dtype {dtype!r} for weights; choose float32, bfloat16 or float16.")
    return found


def usable_device(device: str | torch.device | None) -> str | torch.device:
    """A device by its name; by default a GPU if there is one. Raises ConfigError for a device that is not there."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"The device {device or repr(device)} cannot be used here ({short_reason(error)}): use another, such as "
            "cpu."
        ) from error
    return device
