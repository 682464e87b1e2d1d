"""What this machine offers llama.cpp: threads, memory for its prompt cache, and what its CPU could do beyond that.

Asked by the executor when it starts.
"""

from __future__ import annotations

import os
from pathlib import Path

MAX_CACHE_MIB = 8192

# What a CPU calls a faculty, and how llama.cpp's own line about its build does.
_FACULTIES = {"avx512f": "AVX512", "amx_int8": "AMX_INT8", "sve": "SVE"}


def threads() -> int:
    """Physical cores less one: with every core busy, llama.cpp's threads wait for each other while spinning."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or 1, allowed) - 1)


def cache_mib() -> int:
    """Memory for prompts that were read before: an eighth of the machine's, instead of always 8 GiB."""
    import psutil

    return min(MAX_CACHE_MIB, psutil.virtual_memory().total // 8 // 2**20)


def cpu_flags() -> frozenset[str]:
    """What the CPU can do, as Linux names it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(flags.partition(":")[2].split())


def unused(flags: frozenset[str], system: str) -> list[str]:
    """What the CPU has and llama.cpp, by its own line `system`, was built without."""
    used = system.replace(" ", "")
    return [name for flag, name in _FACULTIES.items() if flag in flags and f"{name}=1" not in used]
