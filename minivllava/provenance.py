"""What made a result: machine, versions, commit."""

import platform
import shutil
import subprocess
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
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return {
        "minivllava": __version__,
        "commit": commit,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {device}",
    }
