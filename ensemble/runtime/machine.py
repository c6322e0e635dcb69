"""Facts about this machine: cores, memory, the processor's name, the GPUs' names."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path


def name_gpus() -> tuple[str, ...]:
    """Return one line per GPU from nvidia-smi: name, memory and driver version; nothing without a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    command = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that can still be allocated: what the system has free, or less under a cgroup limit."""
    try:
        fields = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):  # not Linux
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(0, min([free, *_left_in_cgroups(root)]))


def _left_in_cgroups(root: Path) -> list[int]:
    """Return the bytes left in this process's cgroup and in those above it, version 1 and 2."""
    groups = [(root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")]
    try:
        found = re.search(r"^0::/(.*)$", (root / "proc/self/cgroup").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    own = Path(found[1] if found else "")
    groups += [(root / "sys/fs/cgroup" / folder, "memory.max", "memory.current") for folder in (own, *own.parents)]
    left = []
    for folder, limit, used in groups:
        try:
            most, now = int((folder / limit).read_text()), int((folder / used).read_text())
            held = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
        left.append(most - now + int(held.get("inactive_file", 0)))  # file cache, which the kernel gives back
    return left


def available_cores() -> int:
    """Return the number of cores this process may use, by its affinity and the container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no quota
    return cores


def processor_name() -> str:
    """Return the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
