"""Where and in which precision to compute."""

from __future__ import annotations

import mmap
import subprocess
import sys

import pytest
import torch

from utils import device
from utils.device import choose_dtype
from utils.errors import UsageError

CPU = torch.device("cpu")


def test_bf16_is_refused_by_a_cpu_without_it(monkeypatch):
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: False)
    with pytest.raises(UsageError, match="--amp bf16: this CPU has no bfloat16; use --amp off"):
        choose_dtype("bf16", CPU)
    assert choose_dtype("off", CPU) == torch.float32


@pytest.mark.parametrize("unit", ["amx_tile", "avx512_bf16", None])
def test_auto_takes_bf16_where_the_processor_has_units_for_it(unit, monkeypatch):
    for one in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{one}_supported", lambda one=one: one == unit)
    assert choose_dtype("auto", CPU) == (torch.bfloat16 if unit else torch.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch asks for huge pages on Linux alone")
def test_large_tensors_may_be_in_huge_pages():
    program = "import models, torch; print(torch.ones(2**24).data_ptr())"
    address = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(address) % mmap.PAGESIZE == 0  # where PyTorch puts what it asks them for


def test_auto_keeps_what_a_run_began_with(monkeypatch):
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)
    for unit in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda unit=unit: unit)
        assert choose_dtype("auto", CPU, "float32") == torch.float32
        assert choose_dtype("auto", CPU, "bfloat16") == torch.bfloat16
    assert choose_dtype("off", CPU, "bfloat16") == torch.float32  # the run's record then names the flag
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: False)
    with pytest.raises(UsageError, match=r"the run was begun in bfloat16, which this CPU has not: .* --name"):
        choose_dtype("auto", CPU, "bfloat16")


def test_bf16_is_taken_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)
    assert choose_dtype("bf16", CPU) == torch.bfloat16
