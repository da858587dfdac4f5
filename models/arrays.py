"""Denoising of NumPy arrays and tensors as they are: gray or RGB images in any order of axes, real type and units."""

from __future__ import annotations

import copy
import math
import numbers

import numpy as np
import torch
from torch import Tensor

from models.denoiser import BlindSpotDenoiser
from models.mwcnn import MWCNN
from models.outliers import outlying
from models.stride import denoise_picture
from models.units import full_scale, other_scale, units_in_use

MAX_STRIDE = 8
AXES = "(H,W), (H,W,C), (C,H,W) or (N,C,H,W)"


def denoise(
    model: BlindSpotDenoiser | MWCNN,
    array: np.ndarray | Tensor,
    black: float | None = None,
    white: float | None = None,
    tile: int | None = None,
    self_ensemble: bool = False,
    stride: int | None = None,
) -> np.ndarray | Tensor:
    """The denoised array: NumPy or torch, shape, device and float type as given; float32 where integers are given.

    array: (H,W) where the model is gray, (H,W,C), (C,H,W) or (N,C,H,W), C = 1 gray or 3 RGB, on any device. Each
    image of N is denoised by itself. The array stays as it is, and so does the model. Three equal channels are a gray
    image, whose noise a colour model does not know: give one of them to a gray model.
    black, white: the values that are 0 and 1 to the network. Where only white is given, black is 0. Without white the
    network works in units of noise (models/units.py): whatever the array's brightness and offset are, the result
    follows them. A model that has learned a noise level (the paper's CNN_est) cannot: its white is that of its
    training, see `learned_white`.
    tile, self_ensemble: see models.inference.denoise_batch.
    stride: see models/phases.py. None chooses it for each image, where neighbours share its noise; the model's own
    `stride` does not count.

    Raises TypeError for other kinds of objects and ValueError for arrays that are no image of the model's, or whose
    axes could be read in two ways. The message is one sentence with the remedy.
    """
    check(array)
    axis = channel_axis(tuple(array.shape), model.channels)
    check_levels(black, white)
    if (
        stride is not None and not (isinstance(stride, numbers.Integral) and 1 <= stride <= MAX_STRIDE)
    ) or stride is True:
        raise ValueError(f"stride is {stride!r}: give a whole number from 1 to {MAX_STRIDE}, or None")
    stride = stride and int(stride)
    if tile is not None and not (isinstance(tile, numbers.Integral) and tile >= 1):
        raise ValueError(f"tile is {tile!r}: give a whole number of pixels, or None")
    used = copy.copy(model)  # it shares the weights; what is set here the caller's model never sees
    used.training = False
    if white is None and model.level_is_learned:
        white = learned_white(model, array)
        check_levels(black, white)
    if white is None:
        if black is not None:
            raise ValueError(f"black is {black} and white is not given: give both, or none, for offsets do not matter")
        used.units = units_in_use(used)
    out = empty_like(array)
    for noisy, place in zip(images(array, axis), images(out, axis)):
        y = as_float64(noisy)
        zero, span = zero_and_span(y, black, white)
        if span > 0:
            image = denoise_picture(used, ((y - zero) / span).float()[None], tile, self_ensemble, stride).image[0]
            result = zero + span * image.double()
        else:  # a constant image has no noise
            result = y
        place[...] = result if isinstance(out, Tensor) else result.numpy()
    return out


def check(array: np.ndarray | Tensor) -> None:
    """Raises TypeError or ValueError for what holds no finite real numbers."""
    if not isinstance(array, np.ndarray | Tensor):
        raise TypeError(
            f"a NumPy array or a torch tensor is needed, not {type(array).__name__}: convert it with numpy.asarray"
        )
    tensor = isinstance(array, Tensor)
    real = array.dtype != torch.bool and not array.is_complex() if tensor else array.dtype.kind in "iuf"
    if not real:
        raise ValueError(f"the array holds {array.dtype} values: convert it to real numbers first")
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError("the array has a mask: give its values with array.filled(value)")
    if 0 in array.shape:
        raise ValueError(f"the array is empty, shape {tuple(array.shape)}: give at least one pixel")
    if not (torch if tensor else np).isfinite(array).all():
        raise ValueError("the array holds values that are not finite (NaN or infinity): replace them first")


def check_levels(black: float | None, white: float | None) -> None:
    """Raises ValueError where the levels are not finite, or white is not above black."""
    given = f"black is {black} and white is {white}"
    if not all(value is None or math.isfinite(value) for value in (black, white)):
        raise ValueError(f"{given}: both must be finite, in the array's own units")
    if white is not None and white <= (black or 0):
        raise ValueError(f"{given}: white must be above black (0 where it is not given), in the array's own units")


def learned_white(model: BlindSpotDenoiser, array: np.ndarray | Tensor) -> float:
    """The value of an array that is white to a model whose noise level is learned, as test.py takes it for a file.

    It is the white level that the model was trained with, else the greatest value of an integer type of 8 or 16 bits,
    and 1 for floats.

    Raises ValueError where the array's values do not look like these.
    """
    dtype = as_numpy_dtype(array)
    trained = (getattr(model, "values", None) or {}).get("white_level")
    axis = channel_axis(tuple(array.shape), model.channels)
    seen = [outlying(as_float64(image).float()[None])[0] for image in images(array, axis)]  # hot pixels do not count
    low, high = min(float(y.min()) for y in seen), max(float(y.max()) for y in seen)
    if problem := other_scale(trained, dtype, low, high):
        raise ValueError(f"the array {problem}: say with white= which value is white here")
    return trained or full_scale(dtype)


def as_numpy_dtype(array: np.ndarray | Tensor) -> np.dtype:
    """Its type; float32 for the floats of torch that NumPy lacks."""
    if isinstance(array, Tensor):
        name = "float32" if array.is_floating_point() else str(array.dtype).removeprefix("torch.")
        return np.dtype(name)
    return array.dtype


def channel_axis(shape: tuple[int, ...], channels: int) -> int | None:
    """The axis of the channels, None for (H,W). ValueError where there is none, or two could be it."""
    kind = "gray" if channels == 1 else "RGB"
    problem = f"the array has shape {shape} and the model is {kind}"
    if len(shape) not in (2, 3, 4):
        raise ValueError(f"{problem}: give {AXES}")
    if len(shape) == 2:
        if channels == 1:
            return None
        raise ValueError(f"{problem}: take a model for gray images, or repeat the array in three channels")
    if len(shape) == 4:
        if shape[1] == channels:
            return 1
        raise ValueError(f"{problem}: give (N,{channels},H,W), with the channels in axis 1")
    found = [axis for axis in (0, 2) if shape[axis] == channels]
    if len(found) == 2:
        raise ValueError(f"{problem}, so both the first and the last axis may be the channels: give (1,{channels},H,W)")
    if not found and 3 in (shape[0], shape[2]):
        raise ValueError(f"{problem}: take a model for RGB images, or give one channel at a time")
    if not found:
        raise ValueError(f"{problem}: give {AXES} with C = {channels}; many images are (N,{channels},H,W)")
    return found[0]


def images(array: np.ndarray | Tensor, axis: int | None) -> np.ndarray | Tensor:
    """A view (N,C,H,W) of an array whose channels are in the axis."""
    if axis is None:
        return array[None, None]
    if array.ndim == 4:
        return array
    return array[None] if axis == 0 else array.swapaxes(1, 2).swapaxes(0, 1)[None]


def empty_like(array: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """An array of its kind and shape for results: float32 where it holds integers."""
    if isinstance(array, Tensor):
        dtype = array.dtype if array.is_floating_point() else torch.float32
        return torch.empty(array.shape, dtype=dtype, device=array.device)
    return np.empty(array.shape, array.dtype if array.dtype.kind == "f" else np.float32)


def as_float64(array: np.ndarray | Tensor) -> Tensor:
    """On the CPU."""
    if isinstance(array, Tensor):
        return array.detach().to("cpu", torch.float64)
    return torch.from_numpy(np.array(array, np.float64, order="C"))


def zero_and_span(y: Tensor, black: float | None, white: float | None) -> tuple[float, float]:
    """The value of an image that becomes 0, and what is added to it to become 1.

    Without white this is the image's range, for the sake of float32 alone.
    """
    if white is not None:
        return black or 0.0, white - (black or 0.0)
    low, high = y.min().item(), y.max().item()
    return low, high - low
