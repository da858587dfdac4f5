"""Where and in which precision to compute."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from utils.errors import UsageError

BF16_UNITS = ("amx_tile", "avx512_bf16")  # of CPUs, as PyTorch names them


def choose_device(name: str, local_rank: int = 0, deterministic: bool = False) -> torch.device:
    """--device auto|cpu|cuda -> device.

    local_rank: which GPU of this machine.
    deterministic: the same bits at every run on CUDA too.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device here; use --device auto or cpu")
    device = torch.device(f"cuda:{local_rank}" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
            torch.use_deterministic_algorithms(True)
        # Convolutions that stay float32 (last layers) may round their inputs to TF32's 10 bits. The others round to
        # bfloat16's 7.
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = False  # the algorithm must not depend on a timing: same seed, same bits
    return device


def choose_dtype(amp: str, device: torch.device, recorded: str | None = None) -> torch.dtype:
    """--amp auto|bf16|off -> dtype of the convolutions.

    auto takes bfloat16 where the processor multiplies it in hardware.
    recorded: the dtype that a run began with, by name; auto then keeps it.
    """
    kept = amp == "auto" and recorded in ("float32", "bfloat16")
    if kept:
        amp = "off" if recorded == "float32" else "bf16"
    if amp == "off":
        return torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = any(getattr(torch.cpu, f"_is_{unit}_supported", lambda: False)() for unit in BF16_UNITS)
    if amp == "bf16" and not (native if device.type == "cuda" else cpu_has_bf16()):
        processor = "GPU" if device.type == "cuda" else "CPU"
        if kept:
            raise UsageError(
                f"the run was begun in bfloat16, which this {processor} has not: go on with it on a machine that has, "
                "or begin another with --name"
            )
        raise UsageError(f"--amp bf16: this {processor} has no bfloat16; use --amp off")
    return torch.bfloat16 if native or amp == "bf16" else torch.float32


def cpu_has_bf16() -> bool:
    """Whether this CPU's convolutions can be computed in bfloat16, in its own units or not. It takes AVX-512."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(device: torch.device, processes: int = 1) -> int:
    """The bytes that one of `processes` on this machine may still take.

    The device or the host decides, whichever has less.
    """
    host = host_memory() // processes
    return min(host, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else host


def host_memory() -> int:
    """Bytes that processes can still get without swapping, within the limit of the container."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, ValueError, LookupError):  # not Linux
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Control groups of version 2 and 1: absent or a huge number where there is no limit. What files occupy of the
    # usage can be taken back.
    for folder, limit, usage, files in (
        ("", "max", "current", "inactive_file"),
        ("memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
    ):
        group = Path("/sys/fs/cgroup", folder)
        with suppress(OSError, ValueError, LookupError):
            most, used = (int((group / f"memory.{name}").read_text()) for name in (limit, usage))
            taken = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            available = min(available, max(0, most - used + int(taken[files])))
    return available


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.is_file()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Asks glibc to reuse large freed blocks instead of returning each to the kernel.

    Without it a training step spends a fifth of its time on page faults.

    It is for training, whose blocks have the same sizes in every step. The tiles of inference would fragment the heap.
    It does nothing where the C library has no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Within, the CPU takes numbers below 1.2e-38 for zero; it computes with them many times more slowly.

    They come of themselves: where a unit no longer gets a gradient, its momentum decays through them. To be entered
    before anything is computed, since PyTorch's threads take the setting over when they start, and keep it.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
