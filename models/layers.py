"""Convolutions that D-BSN, its heads and MWCNN share.

All keep the image size, pad with zeros and compute in the dtype of their input, while the weights stay float32: mixed
precision is a matter of the tensor that is passed in. ReLU is fused into the convolution where the CPU library has
that as one kernel.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Conv2d(nn.Conv2d):
    """nn.Conv2d of stride 1 with optional ReLU; (N,in,H,W) -> (N,out,H,W).

    The weights are Kaiming-normal (fan_in), the biases zero.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        dilation: int = 1,
        relu: bool = False,
        bias: bool = True,
    ):
        padding = dilation * (kernel_size // 2)
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias)
        self.relu = relu
        nn.init.kaiming_normal_(self.weight, mode="fan_in")
        if bias:
            nn.init.zeros_(self.bias)

    def kernel(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor | list[Tensor], dense: bool = False) -> Tensor:
        """Applies the convolution.

        x: a list stands for the concatenation of its tensors along the channels.
        dense: ignore the dilation, because x holds the interleaved phases on which a dilated convolution is a dense
        one.
        """
        if isinstance(x, list):
            if self.kernel_size == (1, 1) and all(map(fusible, x)):
                return ConcatConv.apply(self.weight.to(x[0].dtype), self.bias.to(x[0].dtype), self.relu, *x)
            x = torch.cat(x, 1)
        dilation = 1 if dense else self.dilation[0]
        weight, bias = self.kernel().to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        return convolve(x, weight, bias, dilation * (self.kernel_size[0] // 2), dilation, self.relu)


class CentrallyMaskedConv2d(Conv2d):
    """Convolution that never sees the pixel it predicts: the centre of the kernel, hole x hole, is held at zero."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, relu: bool = False, hole: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, relu=relu)
        mask = torch.ones(1, 1, kernel_size, kernel_size)
        ring = (kernel_size - hole) // 2
        mask[..., ring : ring + hole, ring : ring + hole] = 0
        self.register_buffer("mask", mask, persistent=False)

    def kernel(self) -> Tensor:
        return self.weight * self.mask


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Keeps torch.autocast from what a model computes of x: its `dtype` says what is in bfloat16."""
    meta = x.device.type == "meta"  # which has no autocast
    return nullcontext() if meta else torch.autocast(x.device.type, enabled=False)


class PointwiseNet(nn.Module):
    """1x1 convolutions with ReLU between them, the last one in float32: (N,in,H,W) -> (N,out,H,W) float32."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, depth: int):
        super().__init__()
        sizes = [in_channels] + [hidden] * (depth - 1)
        self.hidden = nn.Sequential(*(Conv2d(a, b, relu=True) for a, b in zip(sizes, sizes[1:])))
        self.last = Conv2d(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            return self.last(self.hidden(x).float())


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dilation: int, relu: bool) -> Tensor:
    """Gives relu(conv(x)) or conv(x).

    It is one fused CPU kernel for channels-last tensors, F.conv2d and an in-place ReLU otherwise.
    """
    if not relu:
        return F.conv2d(x, weight, bias, 1, padding, dilation)
    if fusible(x):
        return ConvReLU.apply(x, weight, bias, padding, dilation)
    return F.relu_(F.conv2d(x, weight, bias, 1, padding, dilation))


def fusible(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # the compiler fuses by itself
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
        and torch.backends.mkldnn.is_available()
    )


class ConvReLU(torch.autograd.Function):
    """Convolution and ReLU in one pass over memory (oneDNN); the output's sign is all that ReLU's backward needs."""

    @staticmethod
    def forward(ctx, x, weight, bias, padding, dilation):
        # the operator torch.compile's CPU backend fuses into; it is the only entry to oneDNN's post-operations
        args = ([padding] * 2, [1, 1], [dilation] * 2, 1)
        out = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *args, "relu", [], "")
        ctx.save_for_backward(x, weight, out)
        ctx.geometry = args
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, out = ctx.saved_tensors
        padding, stride, dilation, groups = ctx.geometry
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        wanted = list(ctx.needs_input_grad[:3])
        grads = torch.ops.aten.convolution_backward(
            grad, x, weight, [weight.shape[0]], stride, padding, dilation, False, [0, 0], groups, wanted
        )
        return *grads, None, None


class ConcatConv(torch.autograd.Function):
    """1x1 convolution, with ReLU or without, of tensors that are never concatenated.

    oneDNN adds up what each contributes. It saves writing and reading the concatenation, and in the backward pass
    taking its gradient apart.
    """

    GEOMETRY = ([0, 0], [1, 1], [1, 1], 1)  # padding, stride, dilation, groups

    @staticmethod
    def forward(ctx, weight, bias, relu, *parts):
        weights = weight.split([x.shape[1] for x in parts], dim=1)
        out = None
        for k, (x, w) in enumerate(zip(parts, weights)):
            after = "relu" if relu and k == len(parts) - 1 else None
            if out is None:
                out = torch.ops.mkldnn._convolution_pointwise(x, w, bias, *ConcatConv.GEOMETRY, after or "none", [], "")
            else:
                torch.ops.mkldnn._convolution_pointwise_.binary(
                    out, x, w, None, *ConcatConv.GEOMETRY, "add", 1.0, after, [], None
                )
        ctx.save_for_backward(weight, out if relu else None, *parts)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, out, *parts = ctx.saved_tensors
        if out is not None:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        padding, stride, dilation, groups = ConcatConv.GEOMETRY
        wanted = ctx.needs_input_grad
        inputs, weights, bias = [], [], None
        for k, (x, w) in enumerate(zip(parts, weight.split([x.shape[1] for x in parts], dim=1))):
            mask = [wanted[3 + k], wanted[0], wanted[1] and k == 0]
            found = torch.ops.aten.convolution_backward(
                grad, x, w, [weight.shape[0]], stride, padding, dilation, False, [0, 0], groups, mask
            )
            inputs.append(found[0])
            weights.append(found[1])
            bias = found[2] if k == 0 else bias
        return torch.cat(weights, 1) if wanted[0] else None, bias, None, *inputs
