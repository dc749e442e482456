"""What this machine has, and what a process has used of it."""

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes() -> int:
    """Memory that a new process can have without swapping, as far as the system tells."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        available = _field(meminfo, "MemAvailable") * 1024
        limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
        if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
            # Pages of files count as used, and are given up for whoever needs memory.
            stat = limit.with_name("memory.stat")
            files = (
                sum(_field(stat, f"{kind}_file") for kind in ("active", "inactive")) if stat.exists() else 0
            )
            available = min(available, max(0, int(text) - int(used.read_text()) + files))
        return available
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory_bytes() -> int:
    """The most memory that this process has had resident."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage's, this figure does not begin with the parent's
        return _field(status, "VmHWM") * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, system and versions, for reports."""
    from importlib.metadata import version

    from paragone.ops.choose import describe_kernels

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "kernels": describe_kernels(),
        "paragone": version("paragone"),
    }


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        match line.replace(":", " ").split():
            case [key, value, *_] if key == name:
                return int(value)
    return 0
