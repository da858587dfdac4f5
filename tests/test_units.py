"""Networks whose input is in units of the image's noise: results follow brightness and offset."""

from __future__ import annotations

import pytest
import skimage.data
import torch

from models import MWCNN, BlindSpotDenoiser, load_model
from models.inference import denoise_batch
from models.units import STEP, UNITS, USUAL_MEAN, USUAL_NOISE, scale_of, views_of
from tests.helpers import LEVELS, TINY, TINY2, ok


@pytest.fixture(params=[(kind, units) for kind in ("awgn", "hg", "poisson", "student") for units in UNITS], ids=str)
def model(request):
    """A network trained in either units and used in units of noise."""
    torch.manual_seed(0)
    kind, units = request.param
    if kind == "student":
        model = MWCNN(1, width=8, units=units).eval()
    else:
        model = BlindSpotDenoiser(1, kind, width=8, blocks=1, estimator="residual", units=units).eval()
        torch.nn.init.normal_(model.cov_head.last.weight, std=0.01)
    model.units = "noise"
    return model


@pytest.fixture
def y(rng):
    x = torch.linspace(0.2, 0.8, 60).expand(1, 1, 50, 60)
    return x + 0.1 * torch.randn(x.shape, generator=rng)


@pytest.mark.parametrize(("a", "b"), [(0.1, 0.0), (1e-6, 0.0), (0.3, 0.3), (20.0, -3.0), (1000.0, 5000.0)])
def test_results_follow_brightness_and_offset(model, y, a, b):
    """A variance that grows with the signal follows brightness alone: with an offset it is another function."""
    b = b if model.stage == 2 or model.noise == "awgn" else 0
    plain, other = denoise_batch(model, y), denoise_batch(model, a * y + b)
    scale = a * y.std()
    assert ((other.image - (a * plain.image + b)).abs().max() / scale) < 2e-3  # rounding of the offset
    if plain.noise_level is not None:
        torch.testing.assert_close(other.noise_level, a * plain.noise_level, rtol=5e-3, atol=0)


def test_tiles_share_the_scale_of_the_image(model, rng):
    y = torch.linspace(0, 1, 300).expand(1, 1, 280, 300) ** 3 + 0.05 * torch.randn(1, 1, 280, 300, generator=rng)
    whole, tiled = denoise_batch(model, y, tile=1000), denoise_batch(model, y, tile=32)
    torch.testing.assert_close(tiled.image, whole.image, atol=1e-4, rtol=1e-4)


def test_scale_is_the_noise_of_a_smooth_image(rng):
    x = torch.linspace(0, 1, 200).expand(2, 3, 160, 200)
    m, s = scale_of(x + torch.tensor([0.05, 0.2]).view(2, 1, 1, 1) * torch.randn(x.shape, generator=rng))
    torch.testing.assert_close(m.flatten(), torch.full((2,), 0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(s.flatten(), torch.tensor([0.05, 0.2]), atol=0, rtol=0.02)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (2, 2), (9, 9)])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_and_tiny_images_stay_as_they_are(model, size, value):
    image = denoise_batch(model, torch.full((1, 1, *size), value)).image
    assert torch.isfinite(image).all()
    assert scale_of(torch.full((1, 1, *size), value))[1].item() == 1


def test_both_stages_train_in_units_of_noise(run, pictures, tmp_path):
    line = f"--clean {pictures}/gray {LEVELS['awgn']} {TINY} --units noise --steps 3"
    ok(run("train_dbsn", f"--name s1 {line}"))
    ok(
        run(
            "train_distill", f"--name s2 --teacher s1 --clean {pictures}/gray --noisy {pictures}/gray {TINY2} --steps 2"
        )
    )
    ok(run("test", f"--checkpoint s1 s2 --data {pictures}/gray {LEVELS['awgn']} --json {tmp_path}/r.json"))
    code, _, err = run("train_dbsn", f"--name s1 {line.replace('--units noise', '--units white')}")
    assert code == 2 and "--units was noise, now white" in err


def test_a_network_of_white_units_takes_up_units_of_noise(y):
    """Its mu is then that of its use in units of noise, and a student's result is, away from the border."""
    torch.manual_seed(0)
    model = BlindSpotDenoiser(1, "awgn", width=8, blocks=1, estimator="residual").eval()
    model.units = "noise"
    before = model(y)
    model.take_up_units_of_noise()
    after = model(y)
    assert model.config["units"] == "noise"
    torch.testing.assert_close(after.mu, before.mu, atol=1e-4, rtol=0)
    # V at its start, a standard deviation of 12 of 255 for a noise of 15, is near the point where both are equal
    torch.testing.assert_close(after.v.variance.sqrt(), before.v.variance.sqrt(), rtol=0.05, atol=0)

    student = MWCNN(1, width=8).eval()
    y = y.repeat(1, 1, 6, 5)
    student.units = "noise"
    before = student(y)
    student.take_up_units_of_noise()
    inside = slice(student.receptive_radius, -student.receptive_radius)
    torch.testing.assert_close(student(y)[..., inside, inside], before[..., inside, inside], atol=1e-4, rtol=0)


def test_usual_images_look_the_same_to_a_network_of_white_units(rng):
    """Of the usual mean and noise: white units and units of noise are then one."""
    torch.manual_seed(0)
    y = USUAL_MEAN + USUAL_NOISE * torch.randn(1, 1, 64, 64, generator=rng)
    m, s = scale_of(y)
    y = USUAL_MEAN + (y - m) / s * USUAL_NOISE
    for model in (BlindSpotDenoiser(1, "awgn", width=8, blocks=1, estimator="residual"), MWCNN(1, width=8)):
        white = denoise_batch(model.eval(), y)
        model.units = "noise"
        torch.testing.assert_close(denoise_batch(model, y).image, white.image, atol=1e-4, rtol=0)


def test_start_from_keeps_the_units_of_its_network(run, pictures, tmp_path):
    line = f"--clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 1"
    ok(run("train_dbsn", f"--name white {line} --units white"))
    for flags, units in (("", "white"), ("--units noise", "noise")):
        for _ in range(2):  # the second time it finds its record
            ok(run("train_dbsn", f"--name from-{units} {line} --start-from white {flags}"))
        assert load_model(f"from-{units}", "cpu", tmp_path).config["units"] == units
    code, _, err = run("train_dbsn", f"--name back {line} --start-from from-noise --units white")
    assert code == 2 and "has units of noise, so leave --units out" in err


@pytest.mark.parametrize(
    ("name", "picture", "sigma"),
    [
        ("gray-awgn-blind", "camera", 5),
        ("gray-awgn-blind", "moon", 5),
        ("gray-awgn-blind", "coins", 5),
        ("gray-hg-blind", "camera", 2),
        ("gray-awgn-blind-full", "camera", 2),
        ("gray-awgn-blind", "camera", 25),
    ],
)
def test_an_unknown_white_costs_little(name, picture, sigma, rng):
    """Pictures of a wide range with little noise too, where the usual noise would take values far beyond 0..1."""
    x = torch.from_numpy(getattr(skimage.data, picture)()[:128, :128] / 255.0).float()[None, None]
    y = x + sigma / 255 * torch.randn(x.shape, generator=rng)
    errors = []
    for units in UNITS:
        network = load_model(name)
        network.units = units
        errors.append((denoise_batch(network, y).image - x).square().mean().item())
    assert errors[1] < 1.5 * errors[0]


@pytest.mark.parametrize("name", ["gray-awgn-blind", "gray-hg-blind", "gray-hg-blind-full"])
def test_a_few_bright_points_do_not_set_the_scale(name, rng):
    """Stars on a dark sky: their range is hundreds of times the noise, and most of the picture is sky."""
    at = torch.arange(160.0)
    x = 200 + 20 * torch.sin(at / 25)[:, None].expand(160, 160).clone()
    for _ in range(40):
        row, column, height = (
            float(t) for t in torch.rand(3, generator=rng) * torch.tensor([150.0, 150.0, 3000.0]) + 5
        )
        x += height * torch.exp(-(at - row)[:, None].square() / 2.3) * torch.exp(-(at - column).square() / 2.3)
    y = (x + 14 * torch.randn(x.shape, generator=rng))[None, None]
    network = load_model(name)
    network.units = "noise"
    error = (denoise_batch(network, y).image - x).square().mean().sqrt().item()
    assert error < 0.8 * 14, error


def with_spot(height, rng):
    """A noisy photograph with a bead so many times as bright as its white, the clean one, and where the bead is not."""
    at = torch.arange(160.0)
    spot = torch.exp(-(at - 80)[:, None].square() / 50) * torch.exp(-(at - 70).square() / 50)
    x = (torch.from_numpy(skimage.data.camera()[160:320, 160:320] / 255.0).float() + height * spot)[None, None]
    return x + (0.02 * x + 0.05**2).sqrt() * torch.randn(x.shape, generator=rng), x, spot < 1e-4


@pytest.mark.parametrize("name", [pytest.param("gray-hg-blind", marks=pytest.mark.slow), "gray-hg-blind-full"])
def test_a_bright_spot_leaves_the_rest_as_it_is(name, rng):
    network = load_model(name)
    network.units = "noise"
    errors = []
    for height in (0, 30, 300):
        y, x, apart = with_spot(height, rng.manual_seed(0))
        errors.append((denoise_batch(network, y).image - x)[0, 0, apart].square().mean().sqrt().item())
    assert max(errors[1:]) < 1.05 * errors[0]


@pytest.mark.slow
def test_stars_are_not_taken_for_noise(rng):
    """The curve of the noise is measured on a flat sky, and must not be trusted twenty times as far."""
    at, network = torch.arange(192.0), load_model("gray-hg-blind")
    network.units = "noise"
    for _ in range(2):
        x = torch.full((192, 192), 200.0)
        for row, column, share in torch.rand(24, 3, generator=rng):
            distance = (at - 192 * row)[:, None].square() + (at - 192 * column).square()
            x += (400 + 3300 * share) * torch.exp(-distance / (2 * (1.8 / 2.355) ** 2))
        y, stars = x + x.sqrt() * torch.randn(x.shape, generator=rng), x > 400
        error, noise = denoise_batch(network, y[None, None]).image[0, 0] - x, y - x
        assert error[stars].square().mean() < 1.5 * noise[stars].square().mean()
        assert error[~stars].square().mean() < 0.3 * noise[~stars].square().mean()


def test_what_an_image_is_shown_as(rng):
    one, far = with_spot(0, rng)[0], with_spot(300, rng)[0]
    dark = 1 - far  # a spot that is darker than all else
    for widest in (1.0, 2.0):
        assert len(views_of(one, widest)) == 1
        for y in (far, 1e4 * far - 50, dark):
            views = views_of(y, widest)
            ranges = [float(view.high - view.low) for view in views]
            assert len(views) == 3 and ranges[0] == y.max() - y.min()
            assert all(1 < a / b <= 1.01 * STEP for a, b in zip(ranges, ranges[1:]))
            cut = views[-1].cut(y)
            assert (cut == y).float().mean() > 0.9
        assert len(views_of(far, None)) == 1  # networks that have seen such images


def test_the_views_of_an_image_are_its_own(model, rng):
    """Whatever is in the batch beside it."""
    heights = (0, 20, 300, 30000)  # further views: none, 1, 2, 4
    batch = torch.cat([with_spot(height, rng)[0] for height in heights])
    together = denoise_batch(model, batch).image
    for k in range(len(heights)):
        alone = denoise_batch(model, batch[k : k + 1]).image
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("trained", UNITS)
def test_the_unit_is_what_is_one_to_the_network(trained, rng, monkeypatch):
    torch.manual_seed(0)
    model = BlindSpotDenoiser(1, "awgn", width=8, blocks=1, estimator="residual", units=trained).eval()
    model.units = "noise"
    shown = []
    monkeypatch.setattr(model, "network", lambda x: shown.append(x) or BlindSpotDenoiser.network(model, x))
    y = 3000 * torch.rand(1, 1, 64, 64, generator=rng) - 500
    model.context(y)
    torch.testing.assert_close(model.unit(y).item(), ((y.max() - y.min()) / (shown[0].max() - shown[0].min())).item())
