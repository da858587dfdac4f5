"""Sigma_n, the covariance of the noise: the paper's CNN_est, and an estimator that reads each image's own residual.

    noise model                         Sigma_n                 CNN_est sees    over the image
    awgn  additive white Gaussian       sigma^2 I               y               mean of the raw output
    hg    heteroscedastic (Poisson-     diag(sigma_c(x)^2)      mu              one value per pixel
          Gaussian)
    mg    multivariate Gaussian         full C x C              y               mean of the covariance

1x1 convolutions cannot tell noise from texture by looking at it; what CNN_est learns is the level that explains the training images, as a function of
intensity. So one CNN_est serves one level. Where levels differ from image to image ResidualEstimator finds each image's own.

Both give Sigma_n in two steps: `level`, what there is to know of an image's noise beside the intensity it depends on, (N,K,1,1), and `covariance`, Sigma_n
of that level at an image. So a level found on one image can make noise for another.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.gaussian import Covariance, Diagonal, Full, cholesky, planes, triangle
from models.layers import PointwiseNet

NOISE_MODELS = ("awgn", "hg", "mg")
HIDDEN = {"awgn": 16, "hg": 32, "mg": 32}
FLOOR = 1e-3  # least standard deviation, 0..1 units: a quarter of a level of 255
STRIP = 2**20  # pixels that CNN_est takes at once
# ResidualEstimator's
SAMPLE = 2**22  # pixels that suffice for the statistics of an image
SHARE = 0.02  # of the pixels, those with the lowest covariance, where the noise is read
FITTED = 0.3  # of the pixels, those through which a line is laid for it
STEEPEST = 2.0  # the greatest slope of that line; 1 where V is right
BINS = 16  # ranges of intensity
BLOCK = 16  # side of the blocks in which clipped pixels are counted
AVOID = 30  # what a share of clipped pixels counts against log V: three in a hundred as much as a V 2.5 times larger
CLEAR = 0.02  # share of clipped pixels that takes no more than a few hundredths off the noise's variance


def positive(raw: Tensor, shift: float) -> Tensor:
    """Raw network output -> standard deviation above FLOOR, 0..1 units: exponential well below the shift, linear above it."""
    return F.softplus(raw - shift) + FLOOR


def lower_factor(raw: Tensor, channels: int, shift: float) -> Full:
    """Raw output (N,T,H,W) -> covariance L L^T: the diagonal of L made positive, the rest as it is."""
    entries = [positive(e, shift) if i == j else e for e, (i, j) in zip(raw.split(1, dim=1), triangle(channels))]
    return Full(torch.cat(entries, 1))


class NoiseEstimator(nn.Module):
    """CNN_est. channels: 1 or 3; noise: one of NOISE_MODELS, "mg" in colour only. Always float32."""

    def __init__(self, channels: int, noise: str):
        super().__init__()
        self.channels, self.noise = channels, noise
        outputs = {"awgn": 1, "hg": channels, "mg": len(triangle(channels))}[noise]
        self.net = PointwiseNet(channels, HIDDEN[noise], outputs, depth=5)
        nn.init.zeros_(self.net.last.weight)  # starts at one level everywhere, about 4.9 of 255

    def level(self, y: Tensor) -> Tensor:
        """(N,K,1,1) of images y (N,C,H,W), 0..1, on any device: awgn: mean raw output; mg: mean covariance; hg: nothing, K = 0."""
        if self.noise == "hg":
            return y.new_empty(y.shape[0], 0, 1, 1)
        device, total = self.net.last.weight.device, 0.0
        for strip in y.split(max(1, STRIP // (y.shape[0] * y.shape[3])), dim=2):  # memory does not grow with the image
            raw = self.net(strip.to(device))
            statistic = lower_factor(raw, self.channels, shift=4).entries() if self.noise == "mg" else raw
            total = total + statistic.sum((2, 3), keepdim=True, dtype=torch.float64)
        return (total / (y.shape[2] * y.shape[3])).float()

    def covariance(self, level: Tensor, image: Tensor) -> Covariance:
        """Sigma_n, H = W = 1 where it is image-wide. image: mu, or a clean image, (N,C,H,W); of hg alone its values matter."""
        if self.noise == "mg":
            return cholesky(level)
        variance = positive(self.net(image) if self.noise == "hg" else level, shift=4).square()
        return Diagonal(variance.expand(-1, self.channels, -1, -1))


class ResidualEstimator(nn.Module):
    """Sigma_n of each image by itself, from the residual r = y - mu of the pixels that their context predicts best. Nothing in it is learned.

    D-BSN's covariance V at a pixel does not depend on the pixel's own value, so choosing pixels by it leaves their noise as it was: where it is least, the mean
    of r r^T is Sigma_n and the little that mu errs there. (V itself will not do: the least of many uncertain values is too low.)

        awgn    mean of r^2 over the channels where V is lowest, see `at_lowest`;  K = 1
        mg      mean of r r^T where V is lowest, entry by entry in the same way;  K = C (C + 1) / 2
        hg      as awgn, for each channel in each of BINS ranges of intensity, and through the results the polynomial a + b mu + c mu^2, none of the three
                negative;  K = 5 C: a, b, c, and the intensities beyond which it is constant, the ends of the ranges that are not clipped

    Where a file's range clips the noise, as at black in most pictures of 8 bits, there is less of it than elsewhere: such places are avoided.
    """

    def __init__(self, channels: int, noise: str):
        super().__init__()
        self.channels, self.noise = channels, noise
        # which of a, b, c are not zero, in each of the ways that may be
        sets = torch.tensor([s for s in itertools.product((0.0, 1.0), repeat=3) if any(s)], dtype=torch.float64)
        self.register_buffer("sets", sets, persistent=False)

    @torch.no_grad()
    def level(self, y: Tensor, mu: Tensor, cov: Covariance, gain: Tensor | float = 0.0) -> Tensor:
        """(N,K,1,1) of images y with D-BSN's mu (N,C,H,W) and covariance, Sigma_mu or V.

        gain: the share of the noise's variance that mu has taken over from the pixels around, (N,1,1,1), see BlindSpotDenoiser.gain.
        """
        r, cov = planes(sampled(y) - sampled(mu)), cov.map(sampled)
        if self.noise == "hg":
            return self.polynomial(sampled(mu), cov.variance, torch.cat(r, 1).square() / (1 + gain), share_clipped(y))
        uncertainty, chosen = quietest(y, cov.log_det() / self.channels, FITTED)
        if self.noise == "awgn":
            squares, variance = (t.gather(3, chosen) for t in (sum(e * e for e in r) / self.channels, cov.variance.mean(1, keepdim=True)))
            return at_lowest(squares, variance, uncertainty).float() / (1 + gain)
        squares = torch.cat([(r[i] * r[j]).gather(3, chosen) for i, j in triangle(self.channels)], 1)
        found = at_lowest(squares, cov.entries().gather(3, chosen.expand_as(squares)), uncertainty).float()
        mean = squares[..., : count_lowest(squares)].mean(3, keepdim=True)  # cannot be indefinite
        return torch.where(indefinite(found, self.channels), mean, found) / (1 + gain)

    def polynomial(self, mu: Tensor, variance: Tensor, squares: Tensor, clipped: Tensor) -> Tensor:
        """(N,C,1,n) each, clipped (N,1,1,n) -> (N,5C,1,1)."""
        images, channels, _, n = mu.shape
        mu, variance, squares, clipped = (t.expand_as(mu).reshape(images * channels, n) for t in (mu, variance, squares, clipped))
        bins = min(BINS, n)
        order = mu.argsort(1)[:, : n // bins * bins].unflatten(1, (bins, -1))  # NC,bins,pixels
        in_bins = lambda t, index: t.gather(1, index.flatten(1)).view(index.shape)  # noqa: E731
        uncertainty, chosen = in_bins(variance.log() + AVOID * clipped, order).topk(max(1, round(FITTED * order.shape[2])), dim=2, largest=False)
        chosen = order.gather(2, chosen)
        s = at_lowest(in_bins(squares, chosen), in_bins(variance, chosen), uncertainty)[..., 0].clamp_min(FLOOR**2)  # NC,bins
        lowest = chosen[..., : count_lowest(chosen)]
        m, share = in_bins(mu, lowest).double().mean(2), in_bins(clipped, lowest).mean(2)
        clear = share <= share.amin(1, keepdim=True).clamp_min(CLEAR)
        abc = least_squares(torch.stack([torch.ones_like(m), m, m * m], 2), s, clear / s.square(), self.sets)
        ends = in_bins(mu, order[..., [0, -1]]).double()
        low, high = ends[..., 0].masked_fill(~clear, torch.inf).amin(1, keepdim=True), ends[..., 1].masked_fill(~clear, -torch.inf).amax(1, keepdim=True)
        return torch.cat([abc, low, high], 1).float().view(images, 5 * channels, 1, 1)

    def covariance(self, level: Tensor, image: Tensor) -> Covariance:
        """Sigma_n, H = W = 1 where it is image-wide. image: mu, or a clean image, (N,C,H,W); of hg alone its values matter."""
        if self.noise == "awgn":
            return Diagonal(level.clamp_min(FLOOR**2).expand(-1, self.channels, -1, -1))
        if self.noise == "mg":
            floor = level.new_tensor([FLOOR**2 * (i == j) for i, j in triangle(self.channels)])
            return cholesky(level + floor.view(1, -1, 1, 1))
        a, b, c, low, high = level.unflatten(1, (self.channels, 5)).unbind(2)  # N,C,1,1
        x = image.clamp(low, high)
        return Diagonal((a + x * (b + x * c)).clamp_min(FLOOR**2))


def sampled(t: Tensor) -> Tensor:
    """(N,K,H,W) -> (N,K,1,n): all pixels, or evenly spaced ones of a large image."""
    return t.flatten(2)[..., :: spacing(t)].unsqueeze(2)


def spacing(t: Tensor) -> int:
    """Distance between the sampled pixels of an image (N,K,H,W), in the order of rows."""
    return -(-t[0, 0].numel() // SAMPLE)


def quietest(y: Tensor, log_v: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The share of the sampled pixels of y (N,C,H,W) with the lowest uncertainty: log V, (N,1,1,n), and what clipped surroundings count against it.

    Their uncertainty and their indices, (N,1,1,k) each, lowest first.
    """
    uncertainty = log_v + AVOID * share_clipped(y)
    return uncertainty.topk(max(1, round(share * uncertainty.shape[3])), dim=3, largest=False)


def at_lowest(squares: Tensor, variance: Tensor, uncertainty: Tensor) -> Tensor:
    """What r^2 is on average where V is lowest: r^2, V and the uncertainty of the FITTED pixels, lowest first, (...,n) each -> (...,1), float64.

    A mean over the SHARE alone would be over few pixels. Since the mean of r^2 is V as far as V is right, the line through r^2 over V, each weighted by its
    inverse variance, tells it from all of them. Texture adds to r^2, by what V says or so: the slope is between 0 and STEEPEST.
    """
    s, v = squares.double(), variance.double()
    weight = (-2 * uncertainty.double()).softmax(-1)
    centre = (weight * v).sum(-1, keepdim=True)
    apart = weight * (v - centre)
    slope = (apart * s).sum(-1, keepdim=True) / (apart * v).sum(-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
    return (weight * s).sum(-1, keepdim=True) + slope.clamp(0, STEEPEST) * (v[..., : count_lowest(v)].mean(-1, keepdim=True) - centre)


def indefinite(entries: Tensor, channels: int) -> Tensor:
    """Whether matrices with the lower triangles `entries` (N,T,1,1) have an eigenvalue that is not positive, (N,1,1,1)."""
    matrix = entries.new_zeros(len(entries), channels, channels)
    for k, (i, j) in enumerate(triangle(channels)):
        matrix[:, i, j] = entries[:, k, 0, 0]
    return (torch.linalg.cholesky_ex(matrix).info > 0).view(-1, 1, 1, 1)  # reads the lower triangle


def count_lowest(t: Tensor) -> int:
    """How many of the FITTED pixels in the last dimension are in the SHARE."""
    return max(1, round(SHARE / FITTED * t.shape[-1]))


def share_clipped(y: Tensor) -> Tensor:
    """The share of pixels around each sampled one, in its block, that have the least or greatest value of a channel in the image, (N,1,1,n).

    A block at a time, since choosing pixels by their own value would bend the mean of the rest. An image that is not clipped has few such pixels.
    """
    height, width = y.shape[2:]
    low, high = y.amin((2, 3), keepdim=True), y.amax((2, 3), keepdim=True)
    strips = (((strip == low) | (strip == high)).any(1, keepdim=True).float() for strip in y.split(64 * BLOCK, 2))  # memory grows little with the image
    blocks = torch.cat([F.avg_pool2d(strip, BLOCK, ceil_mode=True) for strip in strips], 2)  # N,1,h,w
    pixel = torch.arange(0, height * width, spacing(y), device=y.device)
    return blocks[:, :, pixel // width // BLOCK, pixel % width // BLOCK].unsqueeze(2)


def least_squares(a: Tensor, s: Tensor, weight: Tensor, sets: Tensor) -> Tensor:
    """Non-negative x (B,3) that minimises sum_k weight_k (a_k x - s_k)^2; a (B,K,3), s and weight (B,K).

    The solution is the ordinary one on some subset of the three, so all subsets are solved (sets (7,3), ones where x may be other than zero) and the best
    that has no negative entry is taken.
    """
    normal = torch.einsum("bki,bk,bkj->bij", a, weight, a)
    sets = sets.to(normal)  # large images have their statistics taken on the CPU, wherever the model is
    right = torch.einsum("bki,bk,bk->bi", a, weight, s)
    # intensities that are all alike leave the powers dependent: a little on the diagonal keeps the systems solvable
    normal = normal + 1e-9 * torch.diagonal(normal, dim1=1, dim2=2).sum(1)[:, None, None] * torch.eye(3).to(normal)
    subsets = normal[:, None] * sets[:, :, None] * sets[:, None, :] + torch.diag_embed(1 - sets)
    x = torch.linalg.solve(subsets, (right[:, None] * sets)[..., None])[..., 0]  # B,7,3
    cost = torch.einsum("bsi,bij,bsj->bs", x, normal, x) - 2 * torch.einsum("bsi,bi->bs", x, right)
    best = cost.masked_fill((x < 0).any(2), torch.inf).argmin(1)
    return x[torch.arange(len(x), device=x.device), best]


ESTIMATORS = {"cnn": NoiseEstimator, "residual": ResidualEstimator}
