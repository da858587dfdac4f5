"""D-BSN, CNN_est and MWCNN: sizes, blindness, equal paths, wavelets, tiles."""

from __future__ import annotations

import pytest
import torch
from skimage.data import camera

from models import MWCNN, BlindSpotDenoiser, load_model, posterior, synthesise
from models.dbsn import DBSN
from models.gaussian import Diagonal, Full, triangle
from models.inference import denoise, inverse_symmetry, symmetry
from models.mwcnn import dwt, iwt
from models.noise import NOISES
from models.noise import ResidualEstimator as Residual
from tests.conftest import ROOT, needs_bf16

PATHS = ("plain", "fused", "phases")


def small(channels=1, noise="awgn", **kwargs):
    """A small network whose every weight matters: the zero-initialised last layers are filled."""
    torch.manual_seed(1)
    model = BlindSpotDenoiser(channels, noise, width=6, blocks=1, **kwargs).requires_grad_(False)
    for name, p in model.named_parameters():
        if name in ("cov_head.last.weight", "noise_estimator.net.last.weight"):
            torch.nn.init.normal_(p, std=0.01)  # more would make covariances of correlated channels nearly singular
    return model.eval()


@pytest.mark.parametrize(("mdc", "count"), [("release", 6_612_289), ("paper", 5_581_633)])
def test_parameter_count_of_the_published_network(mdc, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in DBSN(1, 96, 8, mdc).parameters()) == count


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mdc", ["release", "paper", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
def test_blind_at_every_pixel(path, mdc, dtype):
    """d mu[i] / d y[i] and d cov[i] / d y[i] are exactly zero at all pixels.

    The image has sides that neither 2 nor 3 divides.
    """
    h, w = 7, 11
    model = small(mdc=mdc)
    model.path, model.dtype = path, dtype
    # one image per pixel: the gradient of output i of image i with respect to its input i
    y = torch.rand(1, 1, h, w).repeat(h * w, 1, 1, 1).requires_grad_()
    mu, cov = model.context(y)
    i = torch.arange(h * w)
    for out in (mu, cov.factor):
        picked = out.flatten(2)[i, :, i].sum()
        (grad,) = torch.autograd.grad(picked, y, retain_graph=True)
        grad = grad.flatten(1)
        assert (grad[i, i] == 0).all()
        assert (grad.abs().amax(1) > 0).float().mean() > 0.5  # and it does look around (small networks have dead ReLUs)


@pytest.mark.slow
def test_blind_when_compiled():
    """The gradient of every output with respect to its own pixel.

    It is taken through the compiled network and its compiled backward.
    """
    h, w = 5, 7
    model = small()
    model.path = "phases"
    model.dbsn.compile(dynamic=False)
    y = torch.rand(1, 1, h, w).repeat(h * w, 1, 1, 1).requires_grad_()
    i = torch.arange(h * w)
    mu, cov = model.context(y)
    (grad,) = torch.autograd.grad((mu + cov.factor).flatten(2)[i, :, i].sum(), y)
    assert (grad.flatten(1)[i, i] == 0).all() and (grad != 0).any()


def test_blind_in_colour_and_in_tiles():
    model = small(3, "mg")
    y = torch.rand(1, 3, 40, 33)
    changed = y.clone()
    changed[0, :, 17, 20] += 0.5
    for tile in (None, 16):
        before, after = (denoise(model, v, tile=tile).mu for v in (y, changed))
        same = (before == after).all(1)[0]
        assert same[17, 20] and not same[17, 21]


@pytest.mark.parametrize("mdc", ["release", "paper", "residual"])
@pytest.mark.parametrize("size", [(12, 12), (13, 17), (5, 6), (1, 1), (3, 8)])
def test_fast_paths_equal_the_plain_one(mdc, size):
    torch.manual_seed(0)
    net = DBSN(3, width=8, blocks=2, mdc=mdc)
    y = torch.rand(2, 3, *size)
    expected, grads = {}, {}
    for path in PATHS:
        mu, features = net(y, path)
        net.zero_grad()
        (mu.square().mean() + features.square().mean()).backward()
        expected[path], grads[path] = (mu, features), [p.grad.clone() for p in net.parameters()]
    for path in PATHS[1:]:
        torch.testing.assert_close(expected[path], expected["plain"], atol=1e-4, rtol=1e-4)
        for a, b in zip(grads[path], grads["plain"]):
            torch.testing.assert_close(a, b, atol=1e-4 * b.abs().max().item() + 1e-7, rtol=1e-3)


def test_fused_path_uses_the_fused_kernel(monkeypatch):
    from models import layers

    calls = []
    original = layers.ConvReLU.apply
    monkeypatch.setattr(layers.ConvReLU, "apply", lambda *a: calls.append(1) or original(*a))
    net = DBSN(1, width=16, blocks=1)
    for path, expected in (("plain", False), ("fused", True), ("phases", True)):
        calls.clear()
        net(torch.rand(1, 1, 12, 12), path)
        assert bool(calls) == expected


def test_receptive_radius_is_what_reaches_a_pixel():
    net = DBSN(1, width=4, blocks=2)
    torch.manual_seed(0)
    for p in net.parameters():  # all positive, so that no ReLU hides a path
        torch.nn.init.uniform_(p, 0.01, 0.1)
    r = net.receptive_radius
    y = torch.rand(1, 1, 2 * r + 9, 2 * r + 9, requires_grad=True)
    centre = r + 4
    net(y)[0][0, 0, centre, centre].backward()
    seen = y.grad[0, 0].nonzero()
    assert (seen - centre).abs().max() == r


@needs_bf16
def test_bfloat16_stays_close():
    model = small(3, "hg")
    y = torch.rand(1, 3, 32, 32)
    exact = model(y)
    model.dtype = torch.bfloat16
    rounded = model(y)
    assert rounded.mu.dtype == torch.float32
    assert (rounded.mu - exact.mu).abs().max() < 0.05 * exact.mu.abs().max()


@pytest.mark.parametrize(("channels", "noise"), [(1, "awgn"), (3, "awgn"), (1, "hg"), (3, "hg"), (3, "mg")])
@pytest.mark.parametrize("head", ["mu", "total"])
def test_prediction_shapes_and_posterior(channels, noise, head):
    model = small(channels, noise, head=head)
    y = torch.rand(2, channels, 10, 13)
    p = model(y)
    assert p.mu.shape == y.shape
    assert p.cov_n.variance.shape[2:] == ((10, 13) if noise == "hg" else (1, 1))
    x = posterior(y, p)
    assert x.mean.shape == x.std.shape == y.shape
    assert torch.isfinite(x.mean).all() and torch.isfinite(x.std).all()
    # in gray the posterior lies between mu and y
    if channels == 1:
        assert ((x.mean >= torch.minimum(p.mu, y) - 1e-6) & (x.mean <= torch.maximum(p.mu, y) + 1e-6)).all()


def test_multivariate_noise_is_refused_in_gray():
    with pytest.raises(ValueError, match="more than one channel"):
        BlindSpotDenoiser(1, "mg")


@pytest.mark.parametrize("noise", ["awgn", "hg", "mg"])
def test_synthetic_pairs_have_the_estimated_covariance(noise, rng):
    model = small(3, noise)
    x = torch.rand(1, 3, 1, 1).expand(1, 3, 200, 200)
    cov = model.noise_estimator.covariance(model.noise_estimator.estimate(x), x)
    z = torch.randn(x.shape, generator=rng)
    n = (synthesise(x, cov, z, torch.ones(1)) - x)[0].flatten(1)
    expected = cov.entries()[0, :, 0, 0]
    found = torch.cov(n)[torch.tril_indices(3, 3).unbind()]
    torch.testing.assert_close(found, expected, atol=0.03 * expected.max().item(), rtol=0.05)
    torch.testing.assert_close(
        synthesise(x, cov, z, torch.tensor([1.1])) - x, 1.1 * n.view(x.shape), atol=1e-5, rtol=1e-4
    )


def test_wavelets_are_orthonormal_and_inverse():
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    bands = dwt(x)
    torch.testing.assert_close(iwt(bands), x)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())
    basis = dwt(torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)).flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(16, dtype=torch.float64))
    torch.testing.assert_close(dwt(torch.ones(1, 1, 2, 2))[0, :, 0, 0], torch.tensor([2.0, 0, 0, 0]))
    assert torch.autograd.gradcheck(dwt, x.requires_grad_()) and torch.autograd.gradcheck(iwt, bands.requires_grad_())


def test_wavelets_keep_channels_last(rng):
    """Convolutions are slow otherwise, and bands in the wrong order would go unnoticed by the inverse."""
    x = torch.randn(2, 3, 8, 12, generator=rng).to(memory_format=torch.channels_last)
    bands = dwt(x)
    assert bands.is_contiguous(memory_format=torch.channels_last) and iwt(bands).is_contiguous(
        memory_format=torch.channels_last
    )
    assert torch.equal(bands, dwt(x.contiguous())) and torch.equal(iwt(bands), iwt(bands.contiguous()))
    horizontal = torch.tensor([0.0, 1, 2, 3]).expand(1, 1, 4, 4)
    assert torch.equal(dwt(horizontal)[0, :, 0], torch.tensor([[1.0, 5], [1, 1], [0, 0], [0, 0]]))


def test_mwcnn_and_its_gradient_compile_to_one_graph(rng):
    torch.manual_seed(0)
    model, x = MWCNN(1, width=8), torch.rand(1, 1, 16, 24, generator=rng)
    gradients = []
    for _ in range(2):
        out = model(x)
        gradients.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))])
        model.compile(fullgraph=True, backend="aot_eager")  # fails where the graph would break
    torch.testing.assert_close(gradients[1], gradients[0])


def test_mwcnn_is_the_published_size_and_takes_any_image():
    with torch.device("meta"):
        assert 16.0e6 < sum(p.numel() for p in MWCNN(1).parameters()) < 16.3e6
    model = MWCNN(1, width=8)
    for size in ((1, 1), (7, 5), (8, 8), (33, 17), (9, 64)):
        assert model(torch.rand(1, 1, *size)).shape == (1, 1, *size)


@pytest.mark.parametrize("size", [(50, 61), (16, 90)])
@pytest.mark.parametrize(("channels", "noise"), [(1, "awgn"), (1, "hg"), (3, "mg")])
@pytest.mark.parametrize("estimator", ["cnn", "residual"])
def test_tiles_equal_the_whole(channels, noise, estimator, size, monkeypatch):
    monkeypatch.setattr("models.inference.STRIP", 500)
    monkeypatch.setattr("models.noise.cnn_est.STRIP", 500)
    model = small(channels, noise, estimator=estimator)
    y = torch.rand(1, channels, *size)
    whole, tiled = denoise(model, y, tile=1000), denoise(model, y, tile=16)
    p = model(y)
    assert torch.equal(whole.mu, p.mu)
    torch.testing.assert_close(whole.image, posterior(y, p).mean)
    for name in ("image", "mu", "std", "noise_level", "theta"):
        torch.testing.assert_close(getattr(tiled, name), getattr(whole, name), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(150, 301), (64, 260), (20, 275)])
def test_tiles_equal_the_whole_in_mwcnn(size):
    torch.manual_seed(0)
    model = MWCNN(1, width=4)
    for p in model.parameters():
        p.data.mul_(1.5)  # so that what is far away counts
    y = torch.rand(1, 1, *size)
    torch.testing.assert_close(
        denoise(model, y, tile=72).image, denoise(model, y, tile=1000).image, atol=1e-4, rtol=1e-4
    )


def test_receptive_radius_of_mwcnn():
    model = MWCNN(1, width=4)
    for p in model.parameters():
        torch.nn.init.uniform_(p, 0.01, 0.1)
    r = model.receptive_radius
    worst = 0
    for offset in range(8):  # the wavelet grid makes it depend on the position modulo 8
        y = torch.rand(1, 1, 2 * r + 16, 2 * r + 16, requires_grad=True)
        model(y)[0, 0, r + offset, r + offset].backward()
        worst = max(worst, (y.grad[0, 0].nonzero() - (r + offset)).abs().max().item())
    assert r - 8 < worst <= r


def test_symmetries_are_undone():
    x = torch.rand(1, 2, 4, 5)
    images = [symmetry(x, k) for k in range(8)]
    assert len({tuple(im.flatten().tolist()) for im in images}) == 8
    for k, im in enumerate(images):
        torch.testing.assert_close(inverse_symmetry(im, k), x)


def test_self_ensemble_is_the_mean_over_symmetries():
    model = small()
    y = torch.rand(1, 1, 12, 15)
    expected = sum(inverse_symmetry(denoise(model, symmetry(y, k)).image, k) for k in range(8)) / 8
    torch.testing.assert_close(denoise(model, y, self_ensemble=True).image, expected)


@pytest.mark.parametrize(
    ("channels", "noise"), [(1, "awgn"), (3, "awgn"), (3, "mg"), (1, "hg"), (3, "hg"), (1, "poisson")]
)
def test_residual_estimator_finds_the_noise_of_quiet_pixels(channels, noise, rng):
    """Half of the pixels are predicted exactly, half badly, and the covariance says which: only the first count."""
    size = (1, channels, 200, 300)
    mu = torch.rand(size[0], 1, *size[2:], generator=rng).expand(size)
    if noise == "mg":
        cov_n = Full(torch.tensor([0.2, 0.05, 0.1, -0.03, 0.02, 0.15]).view(1, 6, 1, 1))
    else:
        variance = {"awgn": torch.full(size, 0.1**2), "hg": 0.05**2 + (0.2 * mu).square(), "poisson": 0.1**2 + mu / 30}[
            noise
        ]
        cov_n = Diagonal(variance)
    texture = (torch.arange(size[3]) % 2).float().expand(size) * 0.3
    random = lambda: torch.randn(size, generator=rng)  # noqa: E731
    y = mu + cov_n.sample(random()) + texture * random()
    uncertain = torch.exp(0.1 * random()) * (0.01 + texture.square())  # not known exactly
    estimator = Residual(channels, NOISES[noise])
    found = estimator.covariance(estimator.estimate(y, mu, Diagonal(uncertain)), mu)
    wanted = (
        cov_n.entries().expand(-1, -1, *found.variance.shape[2:]) if noise != "awgn" else cov_n.entries()[..., :1, :1]
    )
    torch.testing.assert_close(found.entries(), wanted, atol=0.1 * wanted.abs().max().item(), rtol=0.15)
    half = estimator.estimate(y, mu, Diagonal(uncertain), gain=1.0)  # as large a share of the variance is mu's own
    if found.variance.shape[2:] == (1, 1):
        torch.testing.assert_close(half, estimator.estimate(y, mu, Diagonal(uncertain)) / 2)


def test_residual_estimator_of_intensities_that_few_pixels_have(rng):
    """Noise grows with the signal, in an image that is dark but for a little.

    What is bright has as much noise as the polynomial says there.
    """
    size = (1, 1, 200, 300)
    mu = torch.rand(size, generator=rng) ** 4
    cov_n = Diagonal(0.02**2 + (0.3 * mu).square())
    y = mu + cov_n.sample(torch.randn(size, generator=rng))
    estimator = Residual(1, NOISES["hg"])
    found = estimator.covariance(estimator.estimate(y, mu, cov_n), mu)
    bright = mu > 0.9
    assert 0 < bright.float().mean() < 0.03
    torch.testing.assert_close(found.variance[bright].sqrt(), cov_n.variance[bright].sqrt(), rtol=0.03, atol=0)


@pytest.mark.parametrize("texture", [0, 0.3])
def test_residual_estimator_uses_more_than_the_quietest_pixels(texture, rng):
    """Over 64 small images the estimate scatters less than a mean over the lowest fiftieth could.

    It does so with texture or without, and is not biased by it.
    """
    size = (64, 1, 64, 96)
    mu = torch.full(size, 0.5)
    variance = 0.1**2 + (texture * torch.rand(size, generator=rng)).square()
    y = mu + variance.sqrt() * torch.randn(size, generator=rng)
    variance = variance * torch.exp(0.05 * torch.randn(size, generator=rng))  # not known exactly
    error = Residual(1, NOISES["awgn"]).estimate(y, mu, Diagonal(variance)).sqrt().flatten() / 0.1 - 1
    assert abs(error.mean().item()) < 0.02
    assert error.std().item() < 0.7 / (2 * 0.02 * 64 * 96) ** 0.5


def test_residual_estimator_of_mg_gives_a_covariance(rng):
    """Where the lines through the entries do not meet in a covariance, the mean over the lowest pixels is one.

    The lines may fail to meet in an image of few pixels.
    """
    size = (200, 3, 6, 6)
    mu = torch.zeros(size)
    cov = Diagonal(torch.rand(size, generator=rng) + 0.5)
    y = torch.randn(size[0], 1, *size[2:], generator=rng) * torch.tensor([1.0, 0.9, -0.5]).view(
        3, 1, 1
    ) + 0.05 * torch.randn(size, generator=rng)
    level = Residual(3, NOISES["mg"]).estimate(y, mu, cov).flatten(1)
    matrix = torch.zeros(200, 3, 3)
    for k, (i, j) in enumerate(triangle(3)):
        matrix[:, i, j] = matrix[:, j, i] = level[:, k]
    assert torch.linalg.eigvalsh(matrix).min() > -1e-6


@pytest.mark.parametrize(("channels", "noise"), [(1, "awgn"), (3, "mg"), (1, "hg")])
def test_residual_estimator_avoids_clipped_places(channels, noise, rng):
    """A third is black, and nothing of it may count.

    There the file's range cuts half of the noise off and the context is the surest.
    """
    size = (1, channels, 200, 300)
    x = torch.linspace(0.4, 0.8, 300).expand(size).clone()
    x[..., :100] = 0
    clipped = (x + 0.1 * torch.randn(size, generator=rng)).clamp(0, 1)
    mu = torch.where(x > 0, x, 0.04)
    cov = Diagonal(torch.where(x > 0, 0.01, 0.0034).expand(size))
    estimator = Residual(channels, NOISES[noise])
    found = estimator.covariance(estimator.estimate(clipped, mu, cov), mu)
    assert found.variance[..., -1].mean().sqrt().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("sigma", [10, 25])
def test_released_weights_on_a_clipped_photograph(sigma):
    """A photograph has much black, its noise cut off and rounded as a file of 8 bits does.

    The level stays right, and with it the result.
    """
    model = load_model("gray-awgn-blind", checkpoints_dir=ROOT / "checkpoints")
    clean = torch.from_numpy(camera()[:256, :256] / 255).float()[None, None]
    noisy = clean + sigma / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    clipped = (255 * noisy).round().clamp(0, 255) / 255
    assert (clipped == 0).float().mean() > 0.01
    found = [denoise(model, y) for y in (noisy, clipped)]
    assert all(255 * d.noise_level.item() == pytest.approx(sigma, rel=0.1) for d in found)
    whole, cut = (-10 * (d.image.clamp(0, 1) - clean).square().mean().log10().item() for d in found)
    assert cut > whole - 1  # black itself is brighter where half of its noise is cut off


def test_residual_estimator_of_flat_and_tiny_images():
    for channels, noise in ((1, "awgn"), (1, "hg"), (3, "mg")):
        estimator = Residual(channels, NOISES[noise])
        for size in ((1, channels, 1, 1), (2, channels, 3, 5), (1, channels, 40, 40)):
            y = torch.full(size, 0.5)
            cov = estimator.covariance(estimator.estimate(y, y, Diagonal(torch.ones(size))), y)
            assert torch.isfinite(cov.variance).all() and (cov.variance > 0).all()


def test_gain_is_the_variance_that_mu_takes_over():
    """A context that averages the four neighbours takes over a quarter of the noise's variance."""
    model = small(estimator="residual")
    kernel = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).view(1, 1, 3, 3) / 4

    def average(y, scale=None):
        mu = torch.nn.functional.conv2d(y, kernel, padding=1)
        return mu, Full(torch.full_like(mu, 0.1))

    model.context = average
    for size in ((200, 200), (700, 90)):
        y = 0.5 + 0.1 * torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1))
        mu, cov = average(y)
        assert model.gain(y, mu, cov).item() == pytest.approx(0.25, rel=0.15)
        level = model.theta(y, mu, cov).item()
        assert level == pytest.approx(0.01, rel=0.1)  # and without the gain a quarter more


@pytest.mark.parametrize("size", [(481, 321), (90, 800), (60, 60)])
def test_gain_is_measured_on_a_part_of_the_image(size, rng, monkeypatch):
    """Little is computed for it, and what is computed there is what the whole image gives."""
    model = small(estimator="residual")
    y = 0.5 + 0.1 * torch.randn(1, 1, *size, generator=rng)
    mu, v = model.context(y)
    places = torch.arange(0, size[0] * size[1], 7)
    windows = model.windows(*size, places)
    for window, core in windows:
        part = model.context(y[:, :, *window])[0][:, :, *core]
        assert part.numel() and torch.allclose(part, mu[:, :, *window][:, :, *core], atol=1e-5)
    pixels = sum((w[0].stop - w[0].start) * (w[1].stop - w[1].start) for w, _ in windows)
    assert pixels == size[0] * size[1] if len(windows) == 1 else pixels < 0.16 * size[0] * size[1]
    few = model.gain(y, mu, v).item()
    monkeypatch.setattr("models.denoiser.GAIN_COST", 0)
    assert (1 + few) / (1 + model.gain(y, mu, v).item()) == pytest.approx(1, abs=0.03)


def test_gain_is_that_of_the_pixels_predicted_best_for_their_noise(rng, monkeypatch):
    """The dark half has the lower covariance but, relative to its little noise, the poorer context.

    That context takes over half of the noise, in the bright half a quarter.
    """
    model = small(noise="hg", estimator="residual")
    bright = (torch.arange(200) >= 100).expand(1, 1, 200, 200)
    two, four = (
        torch.tensor(k).view(1, 1, 3, 3)
        for k in ([[0.0, 0, 0], [0.5, 0, 0.5], [0, 0, 0]], [[0, 0.25, 0], [0.25, 0, 0.25], [0, 0.25, 0]])
    )

    def context(y, scale=None):
        mu = torch.where(bright, *(torch.nn.functional.conv2d(y, kernel, padding=1) for kernel in (four, two)))
        return mu, Full(torch.where(bright, 0.045, 0.02))

    noise = Diagonal(torch.where(bright, 0.04, 0.01).square())
    model.context = context
    monkeypatch.setattr("models.denoiser.GAIN_COST", 0)  # the whole image
    monkeypatch.setattr(model.noise_estimator, "covariance", lambda *seen: noise)
    y = 0.5 + noise.sample(torch.randn(bright.shape, generator=rng))
    assert model.gain(y, *context(y)).item() == pytest.approx(0.25, rel=0.15)
