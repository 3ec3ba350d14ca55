"""What made a result, and what it took: machine, versions, commit; memory."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from minivllava import __version__


def environment() -> dict:
    """Versions, machine, and the commit where the package lies in a git checkout."""
    commit = None
    if shutil.which("git"):
        command = ["git", "rev-parse", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
        commit = answer.stdout.strip() or None
    threads = torch.get_num_threads()
    cpu = f"{threads} CPU thread{'s' if threads > 1 else ''}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return {
        "minivllava": __version__,
        "commit": commit,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {device}",
    }


def peak_memory() -> float:
    """The most of the machine's memory that this process has used so far, in GiB."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**30
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # macOS counts bytes, Linux KiB
