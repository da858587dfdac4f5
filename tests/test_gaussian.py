"""The covariance algebra against torch.linalg and torch.distributions in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from models import gaussian as g
from models.gaussian import Diagonal, Full, triangle
from tests.helpers import matrix

N, H, W = 2, 3, 4


def spd(channels, rng, h=H, w=W):
    """Random factors (N,T,H,W), positive diagonals of a noise-like scale."""
    t = triangle(channels)
    raw = 0.1 * torch.randn(N, len(t), h, w, generator=rng, dtype=torch.float64)
    return Full(torch.stack([raw[:, k].abs() + 0.02 if i == j else raw[:, k] for k, (i, j) in enumerate(t)], 1))


def last(x):
    """(N,C,H,W) -> (N,H,W,C)"""
    return x.permute(0, 2, 3, 1)


@pytest.fixture(params=[1, 3])
def case(request, rng):
    c = request.param
    y, mu = (torch.rand(N, c, H, W, generator=rng, dtype=torch.float64) for _ in range(2))
    return y, mu, spd(c, rng), spd(c, rng)


def test_nll_is_that_of_the_multivariate_normal(case):
    y, mu, cov, _ = case
    expected = -MultivariateNormal(last(mu), matrix(cov)).log_prob(last(y))
    torch.testing.assert_close(g.nll(y, mu, cov)[:, 0], expected)


def test_add_solve_apply_sample_and_scale(case):
    y, _, a, b = case
    total = g.add(a, b)
    torch.testing.assert_close(matrix(total), matrix(a) + matrix(b))
    torch.testing.assert_close(last(total.solve(y)), torch.linalg.solve(matrix(total), last(y)))
    torch.testing.assert_close(last(total.apply(y)), (matrix(total) @ last(y)[..., None])[..., 0])
    torch.testing.assert_close(last(a.sample(y)), (torch.linalg.cholesky(matrix(a)) @ last(y)[..., None])[..., 0])
    torch.testing.assert_close(matrix(a.scale(3.0)), 9 * matrix(a))
    torch.testing.assert_close(a.log_det()[:, 0], torch.logdet(matrix(a)))


def test_posterior_is_the_textbook_one(case):
    y, mu, a, b = case
    precision_a, precision_b = torch.linalg.inv(matrix(a)), torch.linalg.inv(matrix(b))
    cov = torch.linalg.inv(precision_a + precision_b)
    mean = (cov @ (precision_a @ last(mu)[..., None] + precision_b @ last(y)[..., None]))[..., 0]
    result = g.posterior(y, mu, a, b)
    torch.testing.assert_close(last(result.mean), mean)
    torch.testing.assert_close(matrix(result.cov), cov)
    torch.testing.assert_close(last(g.posterior_mean(y, mu, a, b)), mean)
    torch.testing.assert_close(last(result.std), cov.diagonal(dim1=-2, dim2=-1).sqrt())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1e-13, 1e-9, 1e15])
def test_posterior_follows_the_scale_of_the_image(channels, scale, rng):
    y, mu = (torch.rand(N, channels, H, W, generator=rng) for _ in range(2))
    a, b = (Full(spd(channels, rng).factor.float()) for _ in range(2))
    expected, result = g.posterior(y, mu, a, b), g.posterior(scale * y, scale * mu, a.scale(scale), b.scale(scale))
    torch.testing.assert_close(result.mean / scale, expected.mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(result.std / scale, expected.std, rtol=1e-2, atol=1e-4)


def test_constrained_nll_is_the_papers_and_bounds_the_exact_one(case):
    y, mu, a, b = case
    r = last(y - mu)[..., None]
    s, sn = matrix(a) + matrix(b), matrix(b)
    quadratic = (r.mT @ torch.linalg.inv(s) @ r)[..., 0, 0]
    trace = (torch.linalg.inv(sn) @ matrix(a)).diagonal(dim1=-2, dim2=-1).sum(-1)
    value = g.constrained_nll(y, mu, a, b)[:, 0]
    torch.testing.assert_close(value, 0.5 * (quadratic + torch.logdet(sn) + trace))
    assert (value >= g.nll(y, mu, g.add(a, b))[:, 0] - y.shape[1] / 2 * math.log(2 * math.pi) - 1e-9).all()


def test_gray_is_the_scalar_formula():
    y, mu, a, b = (torch.tensor(v, dtype=torch.float64).view(1, 1, 1, 1) for v in (0.7, 0.5, 0.04, 0.01))
    mean = (mu / a + y / b) / (1 / a + 1 / b)
    for cov_mu in (Diagonal(a), Full(a.sqrt())):
        result = g.posterior(y, mu, cov_mu, Diagonal(b))
        torch.testing.assert_close(result.mean, mean)
        torch.testing.assert_close(result.cov.variance, 1 / (1 / a + 1 / b))
        torch.testing.assert_close(
            g.nll(y, mu, g.add(cov_mu, Diagonal(b))), 0.5 * ((y - mu) ** 2 / 0.05 + math.log(2 * math.pi * 0.05))
        )


def test_diagonal_equals_full_without_correlations(rng):
    y, mu, va, vb = (torch.rand(N, 3, H, W, generator=rng, dtype=torch.float64) + 0.01 for _ in range(4))
    a, b = Diagonal(va), Diagonal(vb)
    for f in (
        lambda a, b: g.nll(y, mu, g.add(a, b)),
        lambda a, b: g.constrained_nll(y, mu, a, b),
        lambda a, b: g.posterior(y, mu, a, b).mean,
        lambda a, b: g.posterior(y, mu, a, b).cov.variance,
        lambda a, b: g.excess(g.add(a, b), b).variance,
        lambda a, b: g.trace_ratio(a, b),
        lambda a, b: a.entries(),
        lambda a, b: a.sample(y),
    ):
        for pair in ((a.full(), b.full()), (a, b.full()), (a.full(), b)):
            torch.testing.assert_close(f(*pair), f(a, b))


def test_excess_undoes_a_sum_and_is_never_negative(rng):
    a, b = spd(3, rng), spd(3, rng)
    torch.testing.assert_close(matrix(g.excess(g.add(a, b), b)), matrix(a), atol=1e-8, rtol=1e-6)
    clipped = matrix(g.excess(a, b))  # a - b is indefinite
    assert torch.linalg.eigvalsh(clipped).min() > -1e-9
    # it is the least such matrix in the metric of b: what it leaves over, a - excess, is nowhere above b
    rest = matrix(b) - (matrix(a) - clipped)
    assert torch.linalg.eigvalsh(rest).min() > -1e-9
    assert (
        g.excess(Diagonal(torch.full((1, 1, 1, 1), 0.1)), Diagonal(torch.full((1, 1, 1, 1), 0.2))).variance.item() == 0
    )


def test_eigen_decomposition_of_repeated_and_ordinary_eigenvalues(rng):
    m = torch.cat([matrix(spd(3, rng)).reshape(-1, 3, 3), torch.eye(3, dtype=torch.float64)[None] * 0.3])
    values, vectors = g.symmetric_eigen([[m[:, i, j].view(-1, 1, 1, 1) for j in range(3)] for i in range(3)])
    w = torch.cat(values, 1)[..., 0, 0]
    q = torch.stack([torch.cat(row, 1)[..., 0, 0] for row in vectors], 1)
    torch.testing.assert_close(q * w[:, None] @ q.mT, m)
    torch.testing.assert_close(w.sort().values, torch.linalg.eigvalsh(m))


def test_image_wide_covariance_broadcasts(rng):
    y, mu = (
        torch.rand(N, 3, H, W, generator=rng, dtype=torch.float64),
        torch.rand(N, 3, H, W, generator=rng, dtype=torch.float64),
    )
    a, b = spd(3, rng), spd(3, rng, 1, 1)
    wide = b.map(lambda t: t.expand(-1, -1, H, W))
    for f in (g.posterior_mean, g.constrained_nll):
        torch.testing.assert_close(f(y, mu, a, b), f(y, mu, a, wide))
    torch.testing.assert_close(matrix(g.excess(a, b)), matrix(g.excess(a, wide)))
    torch.testing.assert_close(matrix(g.posterior(y, mu, a, b).cov), matrix(g.posterior(y, mu, a, wide).cov))


def test_float32_is_accurate_where_noise_is_strongly_correlated():
    """A noise covariance of condition 1e5 beside a small Sigma_mu, as MG noise and smooth regions give."""
    rng = torch.Generator().manual_seed(3)
    q = torch.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64)).Q
    sigma = q * torch.tensor([0.09, 1e-3, 1e-6], dtype=torch.float64) @ q.T
    entries = torch.stack([sigma[i, j] for i, j in triangle(3)]).view(1, -1, 1, 1)
    b = g.cholesky(entries)
    a = Full(spd(3, rng).factor * 0.1)
    y, mu = (
        torch.rand(N, 3, H, W, generator=rng, dtype=torch.float64),
        torch.rand(N, 3, H, W, generator=rng, dtype=torch.float64),
    )
    exact = g.posterior_mean(y, mu, a, b)
    single = g.posterior_mean(y.float(), mu.float(), a.map(torch.Tensor.float), b.map(torch.Tensor.float))
    assert (single - exact).abs().max() < 2e-3


@pytest.mark.parametrize("quantile", [0.05, 0.3])
def test_envelope_settles_at_the_quantile(quantile, rng):
    v = torch.rand(1, 1, 40, 40, generator=rng) + 0.5
    cov_total = Diagonal(v)
    grid = torch.linspace(0.45, 1.6, 400)
    losses = torch.stack([g.envelope_loss(Diagonal(s.view(1, 1, 1, 1)), cov_total, quantile) for s in grid])
    assert abs(grid[losses.argmin()] - v.quantile(quantile)) < 0.01


def test_envelope_of_a_full_matrix_is_the_mean_over_the_lowest():
    low, high = torch.eye(3) * 0.01, torch.eye(3) * 0.04
    low[0, 1] = low[1, 0] = 0.004
    entries = torch.stack([torch.stack([m[i, j] for i, j in triangle(3)]) for m in (low, high, high, high)], 1).view(
        1, 6, 2, 2
    )
    cov_total = g.cholesky(entries)
    factor = torch.nn.Parameter(torch.tensor([0.2, 0.0, 0.2, 0.0, 0.0, 0.2]).view(1, 6, 1, 1))
    optimizer = torch.optim.Adam([factor], lr=0.01)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 600)
        optimizer.zero_grad()
        g.envelope_loss(Full(factor), cov_total, quantile=0.125).backward()
        optimizer.step()
    torch.testing.assert_close(matrix(Full(factor))[0, 0, 0], low, atol=1e-4, rtol=1e-2)


def test_envelope_holds_the_total_variance(rng):
    v = torch.rand(1, 1, 4, 4, generator=rng).requires_grad_()
    s = torch.full((1, 1, 1, 1), 0.3, requires_grad=True)
    g.envelope_loss(Diagonal(s), Diagonal(v), 0.1).backward()
    assert v.grad is None and s.grad.abs() > 0
