"""How neighbouring pixels and channels share their noise, read from one picture in its flattest blocks.

No network is asked: one that is given shared noise returns it as part of the picture, and its residual is white.

A block's residual r = P y is what a surface of second degree leaves, P a projection. Noise of covariance sigma^2 K has
E r r^T = sigma^2 P K P. So the mean of r_i r_j over all i and j at one distance, over that of r_i^2, is a known
function of K. `fit` finds the Gaussian blur whose function is nearest. A coarse part that reaches further hides in the
surface.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# brightness, red - blue, green - magenta
OPPONENT = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-0.5, 1.0, -0.5]])
OPPONENT /= OPPONENT.norm(dim=1, keepdim=True)
DIFFERENCES = torch.outer(*2 * [torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)])  # little of a picture passes

SIDE, SHARE, FEWEST = 16, 0.04, 16  # side of the blocks; share and least number of the flattest ones
LOWEST = 2.154  # of normal values the lowest SHARE are so many standard deviations low in the mean
CHANCE = 0.5  # 1 in flat pictures; in photographs of bsd68 with noise of 12 of 255 it would be 0 to 0.2
CLIPPED = 0.02  # share of clipped pixels above which a block does not count
DISTANCES = (1, 2, 3, 4)  # pixels
LEAST_CHROMA = 0.1  # with less, the channels' covariance is singular
SQUARE = 4  # side of the squares of a block whose strengths are compared
REACHES = tuple(0.05 * k for k in range(61))
NEAR, FAR = 10, 40  # pixels between which a pattern repeats itself: noise is shared over less
FLATTER, MIDDLE = 0.5, 1024  # share of the blocks, and side of the part of a picture, that are searched for patterns
PAIRS, ERRORS = 2000, 5  # pixels that are compared at a distance, and standard errors that are taken off
# Correlation of the channels' noise from which it is one. JPEG pictures with subsampled colour have 0.97 or more,
# CBSD68 with independent noise of 2 of 255 has 0.94 at most, of 5 0.71.
ONE_NOISE = 0.95


@dataclass(frozen=True)
class Shared:
    """What neighbours and channels share.

    reach, chroma, chroma_reach: levels of camera noise, see there. variance: the noise's where the flattest blocks
    are, the mean over the channels. intensity: mean of these blocks, (C,).
    """

    reach: float
    chroma: float
    chroma_reach: float
    variance: float
    intensity: Tensor

    @property
    def pixels(self) -> float:
        """How many pixels share their noise."""
        return pixels(self.reach + self.chroma_reach)


def shared_noise(y: Tensor) -> Shared | None:
    """How the noise of a picture y (C,H,W), any units, is shared; None where too few blocks of it are usable.

    y may be on any device. The work is done on the CPU, and its results are there.
    """
    blocks = flattest(y.cpu().double())
    if blocks is None:
        return None
    intensity, r = blocks.mean((0, 2, 3)), residuals(blocks)
    if y.shape[0] == 1:
        reach, variance = fit(r[:, 0])
        return Shared(reach, 1.0, 0.0, variance / share_left([(1.0, reach)]), intensity)
    bright, *colors = torch.einsum("kc,bcij->kbij", OPPONENT.to(r), r)
    reach, variance = fit(bright)
    further, of_colors = fit(torch.cat(colors))
    mean, further = (variance + 2 * of_colors) / 3, max(reach, further)
    chroma = min(max((of_colors / max(variance, 1e-6 * mean)) ** 0.5, LEAST_CHROMA), 1 / LEAST_CHROMA)
    left = share_left([(variance / (3 * mean), reach)] + 2 * [(of_colors / (3 * mean), further)])
    return Shared(reach, chroma, further - reach, mean / left, intensity)


def unevenness(y: Tensor) -> float | None:
    """How unevenly the residuals of the flattest blocks of a picture y (C,H,W) are spread, in any units.

    1 for Gaussian noise, whatever its reach is. Texture has more: its strength and its direction change within a few
    pixels. None where too few blocks are usable, or they are without noise.

    Of each block E_s is the mean of r_i^2 in one of its 4x4 squares, and A the mean of r_i r_j over neighbours in rows
    less that over neighbours in columns. The result is the geometric mean of

        std_s(E_s) / mean(E)  and  std_blocks(A / mean(E)),    each over what Gaussian noise has (`spread_of`)
    """
    blocks = flattest(y.double())
    if blocks is None:
        return None
    r = residuals(blocks)
    r = r[:, 0] if y.shape[0] == 1 else torch.einsum("c,bcij->bij", OPPONENT[0].to(r), r)
    energy = r.square().mean((1, 2))
    r, energy = r[energy > 0], energy[energy > 0]
    if len(r) < FEWEST:
        return None
    squares = F.avg_pool2d(r.square()[:, None], SQUARE).flatten(1)
    strength = (squares.std(1) / energy).mean()
    rows, columns = (r[:, :, 1:] * r[:, :, :-1]).mean((1, 2)), (r[:, 1:] * r[:, :-1]).mean((1, 2))
    direction = ((rows - columns) / energy).std()
    of_noise = spread_of(fit(r)[0])
    return float(strength / of_noise[0] * direction / of_noise[1]) ** 0.5


def repetition(y: Tensor) -> float | None:
    """How much a pattern repeats itself over the flatter half of a picture y (C,H,W), any units, as a correlation.

    0 for noise, whatever its reach is, and 1 for a pattern without noise, such as a grating. It is the greatest
    autocorrelation of the blocks' residuals, each block with the energy 1, at a distance of NEAR to FAR pixels. ERRORS
    of its standard errors are taken off. Over n pairs of pixels of noise with the autocorrelation rho the square of it
    is

        sum_d rho(d)^2 / n    (Bartlett's formula)

    None where too few blocks are usable.
    """
    top, left = ((length - MIDDLE) // 2 // SIDE * SIDE if length > MIDDLE else 0 for length in y.shape[1:])
    y = y[:, top : top + MIDDLE, left : left + MIDDLE].double()
    chosen = places_of_flattest(y, FLATTER)
    if chosen is None:
        return None
    rows, columns = (length // SIDE for length in y.shape[1:])
    r = residuals(in_blocks(y, SIDE, SIDE)).mean(1).flatten(1)  # B,SIDE^2
    r, counts = r / r.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12), torch.zeros_like(r)
    counts[chosen] = 1
    sums, pairs = (
        autocorrelations(t.view(rows, columns, SIDE, SIDE).transpose(1, 2).reshape(rows * SIDE, columns * SIDE))
        for t in (r * counts, counts)
    )
    at = torch.arange(2 * FAR - 1) - FAR + 1
    distance = torch.maximum(at[:, None].abs(), at.abs())
    pairs = pairs.clamp_min(1)
    rho = sums / pairs
    rho = rho / rho[FAR - 1, FAR - 1]
    error = (rho[distance < NEAR].square().sum() / pairs).sqrt()
    compared = (distance >= NEAR) & (pairs > PAIRS)
    return float((rho - ERRORS * error)[compared].max()) if compared.any() else None


def autocorrelations(t: Tensor) -> Tensor:
    """Sums of t_i t_j over the pixels of a map (H,W), (2 FAR - 1)^2.

    j - i goes from -(FAR - 1) to FAR - 1 in rows and columns.
    """
    size = [length + FAR for length in t.shape]
    sums = torch.fft.irfft2(torch.fft.rfft2(t, s=size).abs().square(), s=size)
    return sums.roll((FAR - 1, FAR - 1), (0, 1))[: 2 * FAR - 1, : 2 * FAR - 1]


@lru_cache(maxsize=len(REACHES))
def spread_of(reach: float) -> tuple[float, float]:
    """Both standard deviations of `unevenness` for Gaussian noise of this reach.

    For residuals of covariance M the variance of r^T D r is 2 tr(M D M D), and cov(r_i^2, r_j^2) is 2 M_ij^2.
    """
    p = beside_surface(SIDE)
    m = p @ autocorrelation(reach) @ p
    m *= SIDE**2 / m.trace()
    number = SIDE // SQUARE
    parts = m.square().view(number, SQUARE, number, SQUARE, number, SQUARE, number, SQUARE)
    between_squares = 2 * parts.sum((1, 3, 5, 7)).reshape(number**2, number**2) / SQUARE**4
    strength = (between_squares.diagonal().mean() - between_squares.mean()) * number**2 / (number**2 - 1)
    step = torch.diag(torch.ones(SIDE - 1, dtype=m.dtype), 1)
    step, same = (step + step.T) / (2 * SIDE * (SIDE - 1)), torch.eye(SIDE, dtype=m.dtype)
    md = m @ (torch.kron(same, step) - torch.kron(step, same))
    return float(strength.sqrt()), float((2 * (md @ md).trace()).sqrt())


def share_left(planes: list[tuple[float, float]]) -> float:
    """The share of the noise's variance that the flattest blocks have, since they are flat by chance as well.

    planes: of each channel its share of the variance and its reach. A block's energy E has the relative variance

        Var(E) / E^2 = sum_k share_k^2 2 p_k / n,    p_k pixels that share their noise, of n

    and the lowest SHARE of such values have E (1 - LOWEST sqrt(Var(E)) / E) in the mean. This is so where all of the
    picture is flat. In photographs texture makes up for it. The CHANCE-th power of it lies between.
    """
    relative = sum(share**2 * 2 * pixels(reach) / SIDE**2 for share, reach in planes)
    return max(0.3, 1 - LOWEST * math.sqrt(relative)) ** CHANCE


def pixels(reach: float) -> float:
    """How many pixels share their noise: the sum of a Gaussian blur's autocorrelation, 1 or more."""
    return max(1.0, 4 * math.pi * reach**2)


def flattest(y: Tensor) -> Tensor | None:
    """The flattest blocks (B,C,SIDE,SIDE) of a picture y (C,H,W). Blocks with clipped pixels are left out.

    None where fewer than FEWEST blocks are left.
    """
    chosen = places_of_flattest(y)
    return None if chosen is None else in_blocks(y, SIDE, SIDE)[chosen]


def places_of_flattest(y: Tensor, share: float = SHARE) -> Tensor | None:
    """Which of in_blocks(y, SIDE, SIDE) are the flattest share, (B,); None as in `flattest`."""
    if min(y.shape[1:]) < SIDE:
        return None
    energy = energies(y, SIDE)
    usable = int(energy.isfinite().sum())
    number = max(FEWEST, round(share * usable))
    return None if usable < number else energy.topk(number, largest=False).indices


def energies(y: Tensor, side: int) -> Tensor:
    """Mean square of the residual of each of in_blocks(y, side, side), (B,); infinite where a block does not count.

    Those with clipped pixels do not, and those of one value, which have residuals of rounding alone.
    """
    blocks = in_blocks(y, side, side)  # B,C,h,w
    clipped = ((blocks == y.min()) | (blocks == y.max())).double().mean((1, 2, 3))
    varied = (blocks.amax((2, 3)) > blocks.amin((2, 3))).any(1)
    energy = residuals(blocks).square().mean((1, 2, 3))
    return energy.masked_fill((clipped > CLIPPED) | ~varied | (energy == 0), torch.inf)


def fit(r: Tensor) -> tuple[float, float]:
    """Reach in pixels and variance of the noise with residuals r (B,SIDE,SIDE)."""
    energy = r.square().mean()
    if energy == 0:  # the colours of a gray picture
        return 0.0, 0.0
    measured = torch.stack([along(r, r, d) for d in DISTANCES]) / energy
    known = curves()
    best = int((known[:, 1:] / known[:, :1] - measured).square().sum(1).argmin())
    return REACHES[best], float(energy / known[best, 0])


def along(a: Tensor, b: Tensor, distance: int) -> Tensor:
    """Mean of a_i b_j over the pixels i and j of blocks (B,h,w), j `distance` pixels right of or below i."""
    right = (a[..., :-distance] * b[..., distance:]).mean()
    return (right + (a[..., :-distance, :] * b[..., distance:, :]).mean()) / 2


@lru_cache(maxsize=1)
def curves() -> Tensor:
    """The curve of each of REACHES, (R,1+D)."""
    return torch.stack([curve(reach) for reach in REACHES])


def curve(reach: float) -> Tensor:
    """Means of (P K P)_ij at distances 0 and DISTANCES, (1+D,), K the autocorrelation of a blur by `reach` pixels."""
    k, p = autocorrelation(reach), beside_surface(SIDE)
    pkp = (p @ k @ p).view(SIDE, SIDE, SIDE, SIDE)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return torch.stack([pkp[rows, columns, rows, columns].mean(), *(between(pkp, d) for d in DISTANCES)])


def autocorrelation(reach: float) -> Tensor:
    """K of the pixels of a block, (SIDE^2,SIDE^2), for white noise blurred by `reach` pixels."""
    at = torch.arange(-16, 17, dtype=torch.float64)
    kernel = torch.exp(-at.square() / max(2 * reach**2, 1e-4))
    own = F.conv1d(kernel.view(1, 1, -1), kernel.view(1, 1, -1), padding=32).flatten()  # at -32..32
    distance = (torch.arange(SIDE)[:, None] - torch.arange(SIDE)).abs()
    along_axis = (own / own.max())[32 + distance]  # SIDE,SIDE
    return torch.kron(along_axis, along_axis)


def between(pkp: Tensor, distance: int) -> Tensor:
    i, j = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE - distance), indexing="ij")
    return (pkp[i, j, i, j + distance].mean() + pkp[j, i, j + distance, i].mean()) / 2


def in_blocks(t: Tensor, height: int, width: int) -> Tensor:
    """(C,H,W) -> (B,C,height,width): the blocks that fit, in the order of rows. What is left at the end is left out."""
    blocks = F.unfold(t[None], (height, width), stride=(height, width))[0]  # C h w,B
    return blocks.T.reshape(-1, t.shape[0], height, width)


def residuals(blocks: Tensor) -> Tensor:
    """What no surface of second degree explains of square blocks (B,C,side,side), in the same shape."""
    return (blocks.flatten(2) @ beside_surface(blocks.shape[-1])).view_as(blocks)


@lru_cache(maxsize=4)
def beside_surface(side: int) -> Tensor:
    """The projection (side^2,side^2) of a block on what no polynomial of second degree explains."""
    at = torch.arange(side, dtype=torch.float64)
    r, c = (t.flatten() for t in torch.meshgrid(at, at, indexing="ij"))
    q = torch.linalg.qr(torch.stack([torch.ones_like(r), r, c, r * r, r * c, c * c], 1)).Q
    return torch.eye(side * side, dtype=torch.float64) - q @ q.T


def left_by_surface(side: int, down: int, right: int) -> float:
    """Correlation of pixels (down, right) apart in the residuals of blocks of independent noise: <P_ij> / <P_ii>."""
    projection = beside_surface(side)
    i, j = torch.meshgrid(torch.arange(side - down), torch.arange(side - right), indexing="ij")
    return float(
        projection.view(side, side, side, side)[i, j, i + down, j + right].mean() / projection.diagonal().mean()
    )


def correlation_of_channels(y: Tensor, neighbours_share: bool) -> np.ndarray | None:
    """Correlation of the noise of the channels of a picture y (C,H,W), (C,C), from its flattest blocks.

    Channels have most of their texture in common, so that it would pass for noise that they share. Where neighbours do
    not share the noise, second differences in both directions stand for it, which keep little of texture. None where
    too few blocks are flat.
    """
    blocks = flattest(y.double())
    if blocks is None:
        return None
    r = residuals(blocks)
    if not neighbours_share:
        r = F.conv2d(r.flatten(0, 1)[:, None], DIFFERENCES[None, None])[:, 0].unflatten(0, r.shape[:2])
    products = torch.einsum("bcij,bdij->cd", r, r)
    root = products.diagonal().sqrt().clamp_min(1e-30)
    return (products / root / root[:, None]).numpy()
