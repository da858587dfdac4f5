"""Classical denoisers to compare with: wavelet shrinkage, non-local means and BM3D.

All three are told the true noise level of the image, one number, which the networks are not. Where the level varies
over the image or the channels (HG, MG) that number is its root mean square.

    wavelet   scikit-image, soft thresholds by BayesShrink; colour in YCbCr. Chang, Yu, Vetterli 2000
    nlm       scikit-image, patches of 5 within 6 pixels, h = 0.8 sigma. Buades, Coll, Morel 2005
    bm3d      package bm3d of its authors, for non-commercial use; colour in OPP. Dabov, Foi, Katkovnik, Egiazarian 2007
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import numpy as np

from utils.errors import UsageError

# as they are installed
PACKAGES = {"wavelet": ("scikit-image", "PyWavelets"), "nlm": ("scikit-image",), "bm3d": ("bm3d",)}
SMALLEST_SIDE = 9  # of an image, in pixels: bm3d refuses sides below 8 and crashes on 8 x 8, nlm refuses a single pixel


def check_baselines(names: list[str]) -> None:
    """UsageError where the package of one is missing."""
    for name in names:
        for package in PACKAGES[name]:
            try:
                version(package)
            except PackageNotFoundError:
                raise UsageError(f"--baseline {name} needs the package {package}: pip install {package}") from None


def describe_baseline(name: str) -> str:
    """What a table of results says of it."""
    return f"told the true noise level; {', '.join(f'{package} {version(package)}' for package in PACKAGES[name])}"


def denoise_classically(name: str, y: np.ndarray, sigma: float) -> np.ndarray:
    """Denoises an image with a classical method.

    y: (H,W,C) float32, 0..1, C 1 or 3, sides of SMALLEST_SIDE or more.
    sigma: the standard deviation of its noise in the same units.

    Gives (H,W,C) float32, the same bits at every call. Packages are imported here: they are needed by nobody else.
    """
    if sigma == 0:
        return y
    color = y.shape[2] == 3
    pixels, axis = (y, 2) if color else (y[..., 0], None)
    if name == "wavelet":
        from skimage.restoration import denoise_wavelet

        x = denoise_wavelet(
            pixels,
            sigma=sigma,
            method="BayesShrink",
            mode="soft",
            rescale_sigma=True,
            convert2ycbcr=color,
            channel_axis=axis,
        )
    elif name == "nlm":
        from skimage.restoration import denoise_nl_means

        x = denoise_nl_means(
            pixels, patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma, fast_mode=True, channel_axis=axis
        )
    else:
        import bm3d

        profile = bm3d.BM3DProfile()
        profile.num_threads = 1  # with several, sums differ in their last digits from call to call
        x = (bm3d.bm3d_rgb if color else bm3d.bm3d)(pixels, sigma, profile)
    return np.asarray(x, np.float32).reshape(y.shape)
