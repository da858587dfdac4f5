"""The GPU tests run on the emulated device of tests/fake_cuda.py.

So a tensor left on the wrong device is found without a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import needs_bf16

pytestmark = [pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real CUDA device")]
ROOT = Path(__file__).resolve().parents[1]


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280)


@needs_bf16
def test_gpu_tests_on_the_emulated_device():
    done = python("-m", "pytest", "-q", "-p", "tests.fake_cuda", "tests/test_gpu.py")
    assert done.returncode == 0 and "passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-3000:]


MISTAKES = {
    "two devices": "gpu + torch.ones(3)",
    "two devices in a gradient": "torch.nn.functional.linear(gpu[None], torch.ones(2, 3, requires_grad=True))",
    "numpy": "gpu.numpy()",
    "generator of the CPU": "torch.rand(3, device='cuda', generator=torch.Generator())",
    "generator of the GPU": "torch.rand(3, generator=torch.Generator('cuda'))",
    "a buffer that stays behind": "torch.nn.BatchNorm1d(3).eval()(gpu[None])",
}
SOUND = [
    "gpu + 1",
    "gpu + gpu.new_tensor([1.0, 2, 3])",
    "gpu[torch.tensor([0])]",
    "gpu.cpu() + torch.ones(3)",
    "torch.nn.Linear(3, 2).to('cuda')(gpu).sum().backward()",
]


def test_the_emulated_device_refuses_what_cuda_refuses():
    lines = [
        "import pytest, torch",
        "from tests import fake_cuda",
        "fake_cuda.pytest_configure(None)",
        "gpu = torch.rand(3, device='cuda')",
        *SOUND,
    ]
    lines += [
        f"with pytest.raises((RuntimeError, TypeError), match='device|convert'): {code}" for code in MISTAKES.values()
    ]
    done = python("-c", "\n".join([*lines, "assert gpu.device.type == 'cuda'"]))
    assert done.returncode == 0, done.stderr
