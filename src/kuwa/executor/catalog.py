"""Which executors there are: entry points of the group `kuwa.executors`, ours and other people's, and plain files.

`cli` asks. Loading one executor loads no other; what cannot be loaded is told with its reason, never hidden.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from kuwa.executor.base import LLMExecutor

GROUP = "kuwa.executors"
# The order in which the documentation lists them; others follow by name.
_FIRST = ("debug", "dummy", "geminipro", "chatgpt", "huggingface", "llamacpp")


class CannotLoad(Exception):
    """There is no such executor, or it cannot be imported; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One executor by name. `entry_point` is not loaded before it is asked for."""

    name: str
    entry_point: EntryPoint

    def load(self) -> type[LLMExecutor]:
        """Raises CannotLoad."""
        try:
            found = self.entry_point.load()
        except ImportError as error:
            raise CannotLoad(f"the executor {self.name} cannot be loaded: {error}") from error
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise CannotLoad(f"the executor {self.name} cannot be loaded: {reason}") from error
        if not (isinstance(found, type) and issubclass(found, LLMExecutor)):
            raise CannotLoad(f"the entry point of the executor {self.name} is no class that extends LLMExecutor")
        return found

    def description(self) -> str:
        """The line for `--list`; for an executor that cannot be loaded, the reason."""
        try:
            return self.load().description
        except CannotLoad as error:
            return f"({error})"


def entries() -> list[Entry]:
    """Everything that is installed, in the order of the list."""
    found = {point.name: Entry(point.name, point) for point in entry_points(group=GROUP)}
    first = [found.pop(name) for name in _FIRST if name in found]
    return [*first, *sorted(found.values(), key=lambda entry: entry.name)]


def find(name: str) -> Entry:
    """The executor called `name`. Raises CannotLoad naming the nearest."""
    known = entries()
    for entry in known:
        if entry.name == name:
            return entry
    near = difflib.get_close_matches(name, [entry.name for entry in known], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise CannotLoad(f"there is no executor {name!r}; {hint}kuwa-executor --list shows them")


def is_file(name: str) -> bool:
    """Whether an argument means a file and not a name."""
    return name.endswith(".py") or "/" in name


def load_file(name: str) -> type[LLMExecutor]:
    """The executor that the Python file `name` defines. Raises CannotLoad."""
    path = Path(name).resolve()
    if not path.is_file():
        raise CannotLoad(f"there is no file {name}")
    module = _import(path)
    classes = list(_executors(module))
    leaves = [c for c in classes if not any(issubclass(other, c) and other is not c for other in classes)]
    if not leaves:
        raise CannotLoad(f"{name} defines no class that extends LLMExecutor")
    if len(leaves) > 1:
        names = ", ".join(c.__name__ for c in leaves)
        raise CannotLoad(f"{name} defines several executors ({names}); keep one per file")
    return leaves[0]


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise CannotLoad(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # As for any script: it may import its neighbours, and be found again by pickle and by dataclasses.
    sys.path.insert(0, str(path.parent))  # noqa: TID251 - what `python my_executor.py` itself does
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise CannotLoad(f"{path} cannot be loaded: {error}; install what it needs into this environment") from error
    except Exception as error:
        raise CannotLoad(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def _executors(module: ModuleType) -> Iterator[type[LLMExecutor]]:
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, LLMExecutor) and value.__module__ == module.__name__:
            yield value
