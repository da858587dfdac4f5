"""Gaussian algebra of the method: covariances, likelihoods, Bayes' rule.

The only likelihood and posterior maths of the project. Every quantity is per pixel:

    y = x + n,   n ~ N(0, Sigma_n)          the noisy image
    x ~ N(mu, Sigma_mu)                     what D-BSN knows of x[i] from the pixels around i
    y ~ N(mu, Sigma_mu + Sigma_n)           hence the likelihood of the noisy pixel

Shape legend: N images, C channels (1 or 3), H x W pixels, T = C (C + 1) / 2. Images are 0..1, so variances are in
(0..1)^2. A C x C matrix is held as its channels and its algebra is written out (C is 1 or 3), so that it is
elementwise work on (N,1,H,W) planes: exact at C = 1, fused by torch.compile, and free of one small LAPACK call per
pixel. A covariance that is the same everywhere keeps H = W = 1 and broadcasts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Matrix = list[list[Tensor]]  # C x C planes of shape (N,1,H,W)


def triangle(channels: int) -> list[tuple[int, int]]:
    """Row and column of each of the T entries of a lower triangle: (0,0), (1,0), (1,1), (2,0), .."""
    return [(i, j) for i in range(channels) for j in range(i + 1)]


def planes(x: Tensor) -> list[Tensor]:
    """(N,K,H,W) -> K views of shape (N,1,H,W)."""
    return list(x.split(1, dim=1))


@dataclass(frozen=True)
class Diagonal:
    """Channels that vary independently: Sigma = diag(variance), variance (N,C,H,W) > 0."""

    variance: Tensor

    @property
    def channels(self) -> int:
        return self.variance.shape[1]

    def entries(self) -> Tensor:
        """Lower triangle of Sigma, (N,T,H,W)."""
        v = planes(self.variance)
        return torch.cat([v[i] if i == j else torch.zeros_like(v[i]) for i, j in triangle(self.channels)], 1)

    def log_det(self) -> Tensor:
        """log |Sigma|, (N,1,H,W)."""
        return self.variance.log().sum(1, keepdim=True)

    def whiten(self, r: Tensor) -> Tensor:
        """L^-1 r with L L^T = Sigma; r (N,C,H,W)."""
        return r * self.variance.rsqrt()

    def solve(self, r: Tensor) -> Tensor:
        """Sigma^-1 r; r (N,C,H,W)."""
        return r / self.variance

    def apply(self, r: Tensor) -> Tensor:
        """Sigma r; r (N,C,H,W)."""
        return self.variance * r

    def sample(self, z: Tensor) -> Tensor:
        """L z: a draw from N(0, Sigma) for a standard normal z (N,C,H,W)."""
        return self.variance.sqrt() * z

    def full(self) -> Full:
        """The same covariance as a factor."""
        s = planes(self.variance.sqrt())
        return Full(torch.cat([s[i] if i == j else torch.zeros_like(s[i]) for i, j in triangle(self.channels)], 1))

    def map(self, f) -> Diagonal:
        """The same kind of covariance on f(tensor), for f that keeps values: detach, indexing, moving."""
        return Diagonal(f(self.variance))

    def scale(self, s: Tensor | float) -> Diagonal:
        """Covariance of s times the variable."""
        return Diagonal(self.variance * s**2)


@dataclass(frozen=True)
class Full:
    """Correlated channels: Sigma = L L^T, factor (N,T,H,W) the lower triangle of L row by row, diagonal of L > 0."""

    factor: Tensor

    @property
    def channels(self) -> int:
        return (math.isqrt(8 * self.factor.shape[1] + 1) - 1) // 2

    @cached_property
    def _rows(self) -> Matrix:
        entry = dict(zip(triangle(self.channels), planes(self.factor)))
        return [[entry[i, j] for j in range(i + 1)] for i in range(self.channels)]

    @property
    def variance(self) -> Tensor:
        """Diagonal of Sigma, (N,C,H,W)."""
        return torch.cat([sum(e * e for e in row) for row in self._rows], 1)

    def entries(self) -> Tensor:
        """Lower triangle of Sigma, (N,T,H,W)."""
        rows = self._rows
        return torch.cat([sum(rows[i][k] * rows[j][k] for k in range(j + 1)) for i, j in triangle(self.channels)], 1)

    def log_det(self) -> Tensor:
        """log |Sigma|, (N,1,H,W)."""
        return 2 * sum(row[-1].log() for row in self._rows)

    def whiten(self, r: Tensor) -> Tensor:
        """L^-1 r by forward substitution; r (N,C,H,W)."""
        z: list[Tensor] = []
        for row, ri in zip(self._rows, planes(r)):
            z.append((ri - sum(row[j] * z[j] for j in range(len(z)))) / row[-1])
        return torch.cat(z, 1)

    def solve(self, r: Tensor) -> Tensor:
        """Sigma^-1 r = L^-T (L^-1 r) by forward and back substitution; r (N,C,H,W)."""
        rows, u = self._rows, planes(self.whiten(r))
        for i in reversed(range(self.channels)):
            u[i] = (u[i] - sum(rows[j][i] * u[j] for j in range(i + 1, self.channels))) / rows[i][i]
        return torch.cat(u, 1)

    def apply(self, r: Tensor) -> Tensor:
        """Sigma r = L (L^T r); r (N,C,H,W)."""
        rows, c, r_ = self._rows, self.channels, planes(r)
        t = torch.cat([sum(rows[i][j] * r_[i] for i in range(j, c)) for j in range(c)], 1)
        return self.sample(t)

    def sample(self, z: Tensor) -> Tensor:
        """L z: a draw from N(0, Sigma) for a standard normal z (N,C,H,W)."""
        z_ = planes(z)
        return torch.cat([sum(e * z_[j] for j, e in enumerate(row)) for row in self._rows], 1)

    def full(self) -> Full:
        return self

    def map(self, f) -> Full:
        """The same kind of covariance on f(tensor), for f that keeps values: detach, indexing, moving."""
        return Full(f(self.factor))

    def scale(self, s: Tensor | float) -> Full:
        """Covariance of s times the variable."""
        return Full(self.factor * s)


Covariance = Diagonal | Full


def cholesky(entries: Tensor) -> Full:
    """Factor of the symmetric positive matrices whose lower triangles are `entries` (N,T,H,W).

    A pivot that rounding made negative, or that is zero because the matrix is only semi-definite, becomes a tiny
    positive one.
    """
    channels = (math.isqrt(8 * entries.shape[1] + 1) - 1) // 2
    a = dict(zip(triangle(channels), planes(entries)))
    limits = torch.finfo(entries.dtype)
    factor: dict[tuple[int, int], Tensor] = {}
    for i, j in triangle(channels):
        rest = a[i, j] - sum(factor[i, k] * factor[j, k] for k in range(j))
        if i == j:
            # relative to the diagonal entry: what is left below this is rounding, not information
            factor[i, i] = rest.clamp_min(limits.eps * a[i, i].detach() + limits.tiny).sqrt()
        else:
            factor[i, j] = rest / factor[j, j]
    return Full(torch.cat([factor[ij] for ij in triangle(channels)], 1))


def add(a: Covariance, b: Covariance) -> Covariance:
    """Covariance of the sum of two independent variables."""
    if isinstance(a, Diagonal) and isinstance(b, Diagonal):
        return Diagonal(a.variance + b.variance)
    if a.channels == 1:
        return Diagonal(a.variance + b.variance)
    return cholesky(a.entries() + b.entries())


def mahalanobis(r: Tensor, cov: Covariance) -> Tensor:
    """r^T Sigma^-1 r, (N,1,H,W)."""
    return cov.whiten(r).square().sum(1, keepdim=True)


def trace_ratio(a: Covariance, b: Covariance) -> Tensor:
    """tr(b^-1 a) = |L_b^-1 L_a|_F^2, (N,1,H,W)."""
    if isinstance(a, Diagonal) and isinstance(b, Diagonal):
        return (a.variance / b.variance).sum(1, keepdim=True)
    rows, channels = a.full()._rows, a.channels
    zero = torch.zeros_like(rows[0][0])
    columns = [torch.cat([rows[i][j] if i >= j else zero for i in range(channels)], 1) for j in range(channels)]
    return sum(b.whiten(column).square().sum(1, keepdim=True) for column in columns)


# ----------------------------------------------------------------------------------------- likelihoods


def nll(y: Tensor, mu: Tensor, cov: Covariance) -> Tensor:
    """Exact negative log-likelihood of y under N(mu, cov), in nats per pixel, (N,1,H,W)."""
    return 0.5 * (mahalanobis(y - mu, cov) + cov.log_det() + y.shape[1] * math.log(2 * math.pi))


def constrained_nll(y: Tensor, mu: Tensor, cov_mu: Covariance, cov_n: Covariance) -> Tensor:
    """The constrained negative log-likelihood, the paper's loss of stage 1, per pixel, (N,1,H,W).

        1/2 { (y-mu)^T (Sigma_mu + Sigma_n)^-1 (y-mu) + log |Sigma_n| + tr(Sigma_n^-1 Sigma_mu) }

    Since log|A + B| <= log|B| + tr(B^-1 A) it bounds the exact one from above (up to the constant, which is left out as
    in the paper), and unlike it depends on how the sum is split.
    """
    quadratic = mahalanobis(y - mu, add(cov_mu, cov_n))
    return 0.5 * (quadratic + cov_n.log_det() + trace_ratio(cov_mu, cov_n))


def pinball(x: Tensor, quantile: float) -> Tensor:
    """Loss whose minimiser over a constant c, with x = v - c, is the `quantile` of v."""
    return torch.maximum(quantile * x, (quantile - 1) * x)


def envelope_loss(cov_n: Covariance, cov_total: Covariance, quantile: float) -> Tensor:
    """Fits Sigma_n to the lower envelope of the predictive covariance V, which is held; a mean, in nats.

    Where the context predicts a pixel perfectly, all the variance that is left is noise. So Sigma_n is where V is
    lowest: its `quantile`, given what the noise estimator sees. By the form of Sigma_n:

    - one variance per channel and pixel (HG): the pinball loss on log V_cc - log sigma_c^2
    - one level for the image (AWGN): the same on log|V| / C, the mean log-variance over all directions
    - a full matrix for the image (MG): Sigma_n moves to the mean M of V over the pixels whose log|V| lies in the
      lowest 2 * quantile, by the log-det divergence 1/2 {tr(Sigma_n^-1 M) + log|Sigma_n|}, which is least at
      Sigma_n = M
    """
    v = cov_total.map(torch.Tensor.detach)
    if isinstance(cov_n, Full):
        log_det = v.log_det().flatten(1)  # N, HW
        lowest = max(1, round(2 * quantile * log_det.shape[1]))
        index = log_det.topk(lowest, dim=1, largest=False).indices  # N, K
        entries = v.entries().flatten(2)  # N, T, HW
        mean = entries.gather(2, index[:, None].expand(-1, entries.shape[1], -1)).mean(2)[..., None, None]  # N, T, 1, 1
        return 0.5 * (trace_ratio(cholesky(mean), cov_n) + cov_n.log_det()).mean()
    if cov_n.variance.shape[2:] == (1, 1):
        return pinball((v.log_det() - cov_n.log_det()) / v.channels, quantile).mean()
    return pinball(v.variance.log() - cov_n.variance.log(), quantile).mean()


# ----------------------------------------------------------------------------------------- Bayes' rule


@dataclass(frozen=True)
class Posterior:
    """What is known of the clean pixel after seeing its own noisy value as well: mean (N,C,H,W) and covariance."""

    mean: Tensor
    cov: Covariance

    @property
    def std(self) -> Tensor:
        """Standard deviation per channel, (N,C,H,W), 0..1 units."""
        return self.cov.variance.clamp_min(0).sqrt()


def posterior_mean(y: Tensor, mu: Tensor, cov_mu: Covariance, cov_n: Covariance) -> Tensor:
    """mu + Sigma_mu (Sigma_mu + Sigma_n)^-1 (y - mu), (N,C,H,W).

    Equal to the paper's (Sigma_mu^-1 + Sigma_n^-1)^-1 (Sigma_mu^-1 mu + Sigma_n^-1 y) without inverting Sigma_mu,
    which may be singular.
    """
    return mu + cov_mu.apply(add(cov_mu, cov_n).solve(y - mu))


def posterior(y: Tensor, mu: Tensor, cov_mu: Covariance, cov_n: Covariance) -> Posterior:
    """Posterior mean and covariance Sigma_mu - Sigma_mu (Sigma_mu + Sigma_n)^-1 Sigma_mu.

    With the gain K = Sigma_mu (Sigma_mu + Sigma_n)^-1 the covariance is (I - K) Sigma_mu (I - K)^T + K Sigma_n K^T
    (Joseph's form), a sum of squares of the columns of (I - K) L_mu and K L_n: positive whatever the rounding.
    """
    mean = posterior_mean(y, mu, cov_mu, cov_n)
    if y.shape[1] == 1:
        a, b = cov_mu.variance, cov_n.variance
        return Posterior(mean, Diagonal(a * (b / (a + b))))  # a * b is beyond float32 in images of 1e15
    total, channels = add(cov_mu, cov_n), y.shape[1]
    columns = []
    for j in range(channels):
        basis = torch.zeros_like(mean)
        basis[:, j] = 1
        of_mu, of_n = cov_mu.full().sample(basis), cov_n.full().sample(basis)  # columns j of L_mu and L_n
        columns.append(planes(of_mu - cov_mu.apply(total.solve(of_mu))))
        columns.append(planes(cov_mu.apply(total.solve(of_n))))
    entries = torch.cat([sum(c[i] * c[j] for c in columns) for i, j in triangle(channels)], 1)
    return Posterior(mean, cholesky(entries))


def excess(cov_total: Covariance, cov_n: Covariance) -> Covariance:
    """Sigma_mu = max(V - Sigma_n, 0): the part of the predictive covariance V that is not noise.

    The maximum is the positive part in the metric of Sigma_n: with Sigma_n = L L^T and L^-1 V L^-T = Q diag(w) Q^T it
    is L Q diag(max(w - 1, 0)) Q^T L^T. It serves inference: of several channels it has no gradient.
    """
    if cov_total.channels == 1:
        return Diagonal((cov_total.variance - cov_n.variance).clamp_min(0))
    with torch.no_grad():
        factor, noise, channels = cov_total.full(), cov_n.full(), cov_total.channels
        columns = []
        for j in range(channels):
            basis = torch.zeros_like(factor.factor[:, :channels])
            basis[:, j] = 1
            columns.append(planes(noise.whiten(factor.sample(basis))))  # column j of L_n^-1 L_v
        w = [[sum(c[i] * c[j] for c in columns) for j in range(channels)] for i in range(channels)]
        values, vectors = symmetric_eigen(w)
        scaled = []
        for k in range(channels):  # columns of L_n Q sqrt(max(w - 1, 0))
            q = torch.cat([vectors[i][k] for i in range(channels)], 1) * (values[k] - 1).clamp_min(0).sqrt()
            scaled.append(planes(noise.sample(q)))
        return cholesky(torch.cat([sum(c[i] * c[j] for c in scaled) for i, j in triangle(channels)], 1))


def symmetric_eigen(a: Matrix, sweeps: int = 4) -> tuple[list[Tensor], Matrix]:
    """Eigenvalues (C planes) and eigenvectors (columns, C x C planes) of symmetric matrices.

    They are found by cyclic Jacobi rotations. Four sweeps bring 3 x 3 matrices to rounding level. Unlike the closed
    trigonometric formula this stays accurate for repeated eigenvalues.
    """
    n = len(a)
    a = [[a[i][j].clone() for j in range(n)] for i in range(n)]
    one, zero = torch.ones_like(a[0][0]), torch.zeros_like(a[0][0])
    v = [[one.clone() if i == j else zero.clone() for j in range(n)] for i in range(n)]
    for _ in range(sweeps):
        for p in range(n):
            for q in range(p + 1, n):
                # rotation by t = tan(theta) that zeroes a[p][q] (Golub & Van Loan, 8.5.2)
                off = a[p][q]
                tau = (a[q][q] - a[p][p]) / (2 * torch.where(off == 0, one, off))
                t = torch.where(tau >= 0, 1.0, -1.0) / (tau.abs() + (1 + tau * tau).sqrt())
                t = torch.where(off == 0, zero, t)
                c = (1 + t * t).rsqrt()
                s = t * c
                for k in range(n):
                    a[k][p], a[k][q] = c * a[k][p] - s * a[k][q], s * a[k][p] + c * a[k][q]
                for k in range(n):
                    a[p][k], a[q][k] = c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]
                for k in range(n):
                    v[k][p], v[k][q] = c * v[k][p] - s * v[k][q], s * v[k][p] + c * v[k][q]
    return [a[i][i] for i in range(n)], v
