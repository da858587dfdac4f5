"""A CUDA device on a machine without one: its tensors say that they are on cuda:0 and hold their data on the CPU.

    pytest -p tests.fake_cuda tests/test_gpu.py

An operation on tensors of both kinds raises, as it does on CUDA; so do .numpy() and a generator of the other device.
That shows what was not moved to the device and back. It says nothing of CUDA's kernels, memory or speed, and other
processes do not see the device.
"""

from __future__ import annotations

import pytest
import torch
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")
# what takes tensors of both devices: copies, and indices kept on the CPU
MIXED = ("aten::copy_", "aten::index", "aten::_index_put_impl_", "aten::_unsafe_index")


class CudaTensor(torch.Tensor):
    """`data`: the CPU tensor that it stands for. To PyTorch's C++ part it is on the CPU, to Python on cuda:0."""

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)

    @staticmethod
    def __new__(cls, data: torch.Tensor):
        layout = dict(strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype)
        tensor = torch.Tensor._make_wrapper_subclass(cls, data.size(), **layout, requires_grad=data.requires_grad)
        tensor.held = data.detach()
        return tensor

    def __deepcopy__(self, memo: dict):
        copied = CudaTensor(self.held.clone())
        memo[id(self)] = (
            torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        )
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        others = [
            a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor) and not isinstance(a, CudaTensor)
        ]
        if any(a.dim() for a in others) and not func._schema.name.startswith(MIXED):
            raise RuntimeError(
                f"expected all tensors to be on the same device, but {func} got some on cuda:0 and some on cpu"
            )
        if is_cuda(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
        if func._schema.name == "aten::copy_" and not isinstance(args[0], CudaTensor):
            return args[0].copy_(args[1].held)
        held = tree_map(lambda a: a.held if isinstance(a, CudaTensor) else a, (args, kwargs))
        out = tree_map(lambda a: CudaTensor(a) if isinstance(a, torch.Tensor) else a, func(*held[0], **held[1]))
        return return_and_correct_aliasing(func, args, kwargs, out)


class ToCuda(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return CudaTensor(x.detach().clone())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad.held


class ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.held.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return CudaTensor(grad)


def is_cuda(device) -> bool:
    return isinstance(device, int) or (device is not None and torch.device(device).type == "cuda")


def moved(x: torch.Tensor, device) -> torch.Tensor:
    if is_cuda(device) == isinstance(x, CudaTensor):
        return x
    return (ToCuda if is_cuda(device) else ToCpu).apply(x)


class FakeCuda(TorchFunctionMode):
    """Catches what names a device before PyTorch's C++ part does, which knows of no cuda:0."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        x = args[0] if args else None
        on_cuda = isinstance(x, CudaTensor)
        if func is torch.Tensor.to:
            return self.to(*args, **kwargs)
        if func is torch.Tensor.cuda:
            return moved(x, CUDA)
        if func is torch.Tensor.cpu:
            return moved(x, "cpu")
        if func is torch.Tensor.pin_memory:
            return x
        if on_cuda and func is torch.Tensor.tolist:
            return x.held.tolist()
        if on_cuda and func is torch.Tensor.new_tensor:
            return CudaTensor(x.held.new_tensor(*args[1:], **kwargs))
        if on_cuda and func in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        made_on_cuda = is_cuda(kwargs.get("device"))
        if (random := kwargs.get("generator")) is not None and random.on_cuda != (made_on_cuda or on_cuda):
            raise RuntimeError(f"expected a generator of the device that {func} works on")
        if made_on_cuda and not on_cuda:
            return CudaTensor(func(*args, **kwargs | {"device": "cpu"}))
        return func(*args, **kwargs)

    def to(self, x, *args, device=None, non_blocking=False, **kwargs):
        if args and isinstance(args[0], str | torch.device | torch.Tensor):
            device = getattr(args[0], "device", args[0])
            args = (getattr(args[0], "dtype", None), *args[1:])
        kwargs["dtype"] = next((a for a in args if isinstance(a, torch.dtype)), kwargs.get("dtype"))
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        x = x if device is None else moved(x, device)
        return torch.Tensor.to(x, **kwargs) if kwargs else x


class Generator(torch._C.Generator):
    """torch.Generator that remembers which device it was made for."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls)
        generator.on_cuda = is_cuda(device)
        return generator

    device = property(lambda self: CUDA if self.on_cuda else torch.device("cpu"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config) -> None:
    gib = 2**30
    torch.Generator = Generator
    answers = dict(
        is_available=True,
        device_count=1,
        current_device=0,
        get_device_name="an emulated GPU",
        is_bf16_supported=True,
        mem_get_info=(40 * gib, 80 * gib),
    )
    for name, answer in (
        answers
        | dict.fromkeys(("memory_reserved", "memory_allocated"), 0)
        | dict.fromkeys(("set_device", "synchronize"))
    ).items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a moved parameter is another tensor
    mode = FakeCuda()
    run_backward = torch.autograd._engine_run_backward

    # it is off while it handles .backward(), and our own gradients call PyTorch too
    def under_the_mode(*args, **kwargs):
        with mode:
            return run_backward(*args, **kwargs)

    torch.autograd._engine_run_backward = under_the_mode
    mode.__enter__()
