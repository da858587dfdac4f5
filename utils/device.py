"""Where and in which precision to compute."""

from __future__ import annotations

import ctypes
import os

import torch

from utils.errors import UsageError


def choose_device(name: str, local_rank: int = 0, deterministic: bool = False) -> torch.device:
    """--device auto|cpu|cuda -> device; local_rank: which GPU of this machine; deterministic: the same bits at every run on CUDA too."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device here; use --device auto or cpu")
    device = torch.device(f"cuda:{local_rank}" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
            torch.use_deterministic_algorithms(True)
        # convolutions that stay float32 (last layers) may round their inputs to TF32's 10 bits, as the rest does to bfloat16's 7
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = False  # the algorithm must not depend on a timing: same seed, same bits
    return device


def choose_dtype(amp: str, device: torch.device) -> torch.dtype:
    """--amp auto|bf16|off -> dtype of the convolutions. auto takes bfloat16 where the processor multiplies it in hardware."""
    if amp == "off":
        return torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    if amp == "bf16" and device.type == "cuda" and not native:
        raise UsageError("--amp bf16: this GPU has no bfloat16 units; use --amp off")
    return torch.bfloat16 if native or amp == "bf16" else torch.float32


def keep_freed_memory() -> None:
    """Asks glibc to reuse large freed blocks instead of returning each to the kernel: without it a training step spends a fifth of its time on page faults.

    For training, whose blocks have the same sizes in every step; the tiles of inference would fragment the heap. Does nothing where the C library has
    no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
