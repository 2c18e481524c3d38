"""What a run ran on: commit, versions, machine. Results are equal bit for bit only where the CPU is, so that it is part of every record."""

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

# On a cluster: which job, on which node, after how many restarts
SLURM = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURMD_NODENAME", "SLURM_RESTART_COUNT")


def _git_commit():
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        here = Path(__file__).parent
        commit = subprocess.run(
            ["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        ).stdout.strip()
        looked_at = [
            "status",
            "--porcelain",
            "-uno",
            "--",
            ":/",
            ":!/results",
        ]  # agents add rows to results/ between the runs
        dirty = subprocess.run(["git", "-C", here, *looked_at], capture_output=True, text=True, timeout=5).stdout
        return commit + ("+changes" if dirty else "") or None


def cpu_model():
    """The CPU, as far as it decides which kernels torch takes: "Intel(R) Xeon(R) Processor 207, AVX512" (name, model, capability)."""
    text = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
    found = [
        match[1].strip() for key in ("model name", "model") if (match := re.search(rf"^{key}\s*:(.*)", text, re.M))
    ]
    return f"{' '.join(found) or platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def describe_machine(device):
    """Versions and machine, as config.json records them."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "numpy", "engibench", "wandb"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    machine = {"host": platform.node(), "system": platform.platform(), "cpu": cpu_model()}
    machine |= {"cores": os.cpu_count(), "device": str(device)}
    machine |= {k.lower(): v for k, v in os.environ.items() if k in SLURM}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return {"git": _git_commit(), "versions": versions, "machine": machine}
