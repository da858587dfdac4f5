"""PSNR and SSIM between images (H,W,C) of 0..1.

PSNR is that of the paper: output clamped to 0..1, not rounded, over the whole image. Other groups round to 8 bits
first, so both are given. SSIM is that of Wang et al. (2004): Gaussian window of sigma 1.5, K1 0.01, K2 0.03, mean
over channels; of the clamped image.
"""

from __future__ import annotations

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

SSIM_WINDOW = 11
MULTIPLES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)


def measure(
    clean: np.ndarray,
    image: np.ndarray,
    clamp: bool = True,
    peak: tuple[float, float] | None = None,
    ignored: np.ndarray | None = None,
) -> dict[str, float | None]:
    """Gives psnr, psnr_uint8 and ssim.

    psnr: in dB; None where the images are equal.
    psnr_uint8: psnr after rounding both to 8 bits.
    ssim: None for images smaller than its window.

    clamp: for denoised images. psnr of a noisy input is published without it, as is that of the input here. The other
    two figures always clamp.

    peak: the range whose width is the peak, where it is not 0..1; psnr then never clamps.
    ignored: pixels that count as equal, such as those without a value.
    """
    clean, unclamped = clean.astype(np.float64), image.astype(np.float64)
    if peak:
        low, high = peak
        clean, unclamped, clamp = (clean - low) / (high - low), (unclamped - low) / (high - low), False
    ignored = np.isnan(clean) | (False if ignored is None else ignored)
    if ignored.any():
        clean = clean.copy()
        clean[ignored] = 0
        unclamped = np.where(ignored, clean, unclamped)
    image = unclamped.clip(0, 1)
    small = min(clean.shape[:2]) < SSIM_WINDOW
    return {
        "psnr": psnr(clean, image if clamp else unclamped),
        "psnr_uint8": psnr(np.rint(clean * 255) / 255, np.rint(image * 255) / 255),
        "ssim": None
        if small
        else float(
            structural_similarity(
                clean,
                image,
                data_range=1.0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                channel_axis=2,
            )
        ),
    }


def psnr(clean: np.ndarray, image: np.ndarray) -> float | None:
    return None if np.array_equal(clean, image) else float(peak_signal_noise_ratio(clean, image, data_range=1.0))


def shares_within(error: np.ndarray, std: np.ndarray) -> dict[str, float] | None:
    """The shares of errors within MULTIPLES of the standard deviation, both (H,W,C); by the multiple as text.

    They are 0.68 at 1 and 0.95 at 2 where errors are normal and std is right. Pixels without noise, whose std is 0, and
    those without a value do not count. None where none is left.
    """
    counted = (std > 0) & np.isfinite(error)
    ratio = np.abs(error[counted]) / std[counted]
    return {f"{z:g}": float((ratio <= z).mean()) for z in MULTIPLES} if ratio.size else None
