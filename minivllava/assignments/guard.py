"""What a submission must not do while it is graded, and putting back what it changed.

This keeps accidents and casual tricks from the result and from the machine. It is no prison: code that sets
out to break Python open can. Who grades strangers runs the grader inside a container or a virtual machine.
"""

import builtins
import contextlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
          "os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile")  # fmt: skip
_PROCESSES = ("subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn",
              "os.kill", "os.killpg", "pty.spawn")  # fmt: skip
_NETWORK = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")


def lock_down(folder: Path):
    """From now on: no network, no other processes, no writing outside `folder`, no reading of notebooks."""
    inside = os.path.realpath(folder) + os.sep

    def hook(event: str, arguments: tuple):
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes | os.PathLike):
                return
            name = os.path.realpath(os.fsdecode(path))
            if name.endswith(".ipynb") and not name.startswith(inside):
                raise PermissionError("grading: notebooks must not be read")
            if flags & _WRITING and not name.startswith(inside) and name != os.devnull:
                raise PermissionError(f"grading: nothing may be written outside the working folder ({name})")
        elif event in _PATHS:
            for path in arguments:
                outside = isinstance(path, str | bytes) and not os.path.realpath(os.fsdecode(path)).startswith(inside)
                if outside:
                    raise PermissionError(f"grading: nothing may be changed outside the working folder ({path!r})")
        elif event in _PROCESSES:
            raise PermissionError("grading: no other processes may be started or stopped")
        elif event in _NETWORK:
            raise PermissionError("grading: there is no network")

    sys.addaudithook(hook)


def limit_memory(megabytes: int):
    """Caps the address space at what is in use now plus `megabytes`; files at 64 MB. Where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = 8 << 30
    with contextlib.suppress(OSError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for limit, value in ((resource.RLIMIT_AS, used + (megabytes << 20)), (resource.RLIMIT_FSIZE, 64 << 20),
                         (resource.RLIMIT_CORE, 0)):  # fmt: skip
        with contextlib.suppress(OSError, ValueError):  # macOS refuses some
            hard = resource.getrlimit(limit)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (value, value))


class TimeIsUp(BaseException):
    """Raised inside a cell that takes too long."""


def start_clock(seconds: float):
    """Raises TimeIsUp wherever the program is after `seconds`, and every second from then on, should it be caught."""
    if _set_timer is not None:
        signal.signal(signal.SIGALRM, _ring)
        _set_timer(_REAL, seconds, 1.0)


def stop_clock():
    """No TimeIsUp from now on."""
    if _set_timer is not None:
        _set_timer(_REAL, 0)


def _ring(*_):
    raise TimeIsUp


# Taken down now, since a submission may replace them. Windows has neither: there the parent watches the clock alone.
_set_timer, _REAL = getattr(signal, "setitimer", None), getattr(signal, "ITIMER_REAL", 0)


class Originals:
    """Functions and classes of modules as they were, to find and undo what a submission patched."""

    def __init__(self):
        self.builtins_now = vars(builtins)
        self.builtins_then = dict(self.builtins_now)
        self.holders: dict[int, tuple[object, str, dict[str, object]]] = {}
        self.names: dict[int, set[str]] = {}
        self.modules: dict[str, ModuleType] = {}

    def remember(self, module: ModuleType):
        """Takes down a module's functions and classes and, of classes made there, their methods."""
        if id(module) in self.holders:
            return
        self.modules[module.__name__] = module
        self._keep(module, module.__name__, {k: v for k, v in vars(module).items() if callable(v)})
        for name, value in list(vars(module).items()):
            if inspect.isclass(value) and value.__module__ == module.__name__ and id(value) not in self.holders:
                methods = {k: v for k, v in vars(value).items() if callable(v) or isinstance(v, _WRAPPED)}
                self._keep(value, f"{module.__name__}.{name}", methods)

    def _keep(self, holder: object, name: str, values: dict[str, object]):
        self.holders[id(holder)] = (holder, name, values)
        self.names[id(holder)] = set(vars(holder))

    def restore(self) -> list[str]:
        """Puts everything back. Returns the names of what had been changed, but for what Python itself adds."""
        # first, and by nothing that looks up a builtin: all that follows needs them
        now, then = self.builtins_now, self.builtins_then
        changed = ["builtins." + name for name in then if name != "_" and now.get(name) is not then[name]]
        now.update(then)
        for name, module in self.modules.items():
            if sys.modules.get(name) is not module:
                sys.modules[name] = module
                changed.append(name)
        for holder, holder_name, values in self.holders.values():
            now = dict(vars(holder))
            if inspect.isclass(holder):  # a new method would hide an inherited one
                for name in now.keys() - self.names[id(holder)]:
                    with contextlib.suppress(AttributeError, TypeError):
                        delattr(holder, name)
                        changed += [] if name in _PYTHONS_OWN else [f"{holder_name}.{name}"]
            for name, value in values.items():
                if now.get(name) is not value:
                    with contextlib.suppress(AttributeError, TypeError):
                        setattr(holder, name, value)
                        changed.append(f"{holder_name}.{name}")
        return changed


_WRAPPED = (classmethod, staticmethod, property)
# what copies of an object and look-ups leave on its class
_PYTHONS_OWN = {"__slotnames__", "__annotations__", "__annotations_cache__"}


def importable(names: list[str], load: Callable[[str], ModuleType]) -> list[ModuleType]:
    """The modules of these names that can be imported."""
    modules = []
    for name in names:
        with contextlib.suppress(Exception):
            modules.append(load(name))
    return modules
