"""What goes in comes out: pictures of any kind of value keep their scale, and what carries no noise stays as it is."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from skimage.data import camera

from data.images import read_image
from models import MWCNN, BlindSpotDenoiser, denoise, load_model
from models.inference import denoise_batch
from models.outliers import outlying, without_noise
from models.units import scale_of
from tests.helpers import TINY, TINY2, ok
from utils.errors import UsageError

STUDENT, COLOUR = "gray-hg-blind-full", "color-hg-blind-full"
SCENE = camera()[100:196, 150:246] / 255.0
CELLS = cv2.GaussianBlur((np.random.default_rng(4).random((96, 96)) > 0.997).astype(np.float32), (0, 0), 4)
CELLS /= CELLS.max()


def rms(d) -> float:
    return float(np.sqrt(np.nanmean(np.square(np.asarray(d, np.float64)))))


@pytest.fixture(scope="module")
def student():
    model = load_model(STUDENT)
    model.units = "noise"
    return model


def tiny(kind: str, channels: int = 1):
    """An untrained network of either stage, used in units of noise."""
    torch.manual_seed(0)
    if kind == "student":
        model = MWCNN(channels, width=8)
    else:
        model = BlindSpotDenoiser(channels, "hg", width=8, blocks=1, estimator="residual")
    model.units = "noise"
    return model.eval()


def denoised(model, pixels: np.ndarray) -> np.ndarray:
    y = torch.from_numpy(np.ascontiguousarray(pixels, np.float32))
    y = y[None, None] if y.ndim == 2 else y.permute(2, 0, 1)[None]
    return denoise_batch(model, y).image[0].permute(1, 2, 0).squeeze(2 if y.shape[1] == 1 else ()).numpy()


@pytest.fixture
def through(run, tmp_path):
    """through(name, pixels or a function that writes the file) -> the file that test.py makes of it."""

    def call(name, pixels, *flags, checkpoint=STUDENT):
        (tmp_path / "in").mkdir(exist_ok=True)
        path = tmp_path / "in" / name
        if callable(pixels):
            pixels(path)
        elif path.suffix == ".npy":
            np.save(path, pixels)
        elif path.suffix == ".tif":
            tifffile.imwrite(path, pixels, photometric="minisblack" if pixels.shape[-1] > 4 else "rgb")
        else:
            Image.fromarray(pixels).save(path)
        ok(run("test", f"--checkpoint {checkpoint} --data {path} --save {tmp_path}/out {' '.join(flags)}"))
        (made,) = (tmp_path / "out").glob(f"{path.stem}_denoised.*")
        return made

    return call


# ------------------------------------------------------------------------------------------------ brightness


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("unit", [1.0, 1 / 65535])
def test_dim_pictures_are_about_twice_as_near(student, seed, unit):
    x = unit * (300 + 2200 * np.roll(CELLS, 20 * seed, 0) + 150 * SCENE)
    y = x + np.random.default_rng(seed).normal(0, 1, x.shape) * np.sqrt(x * unit)
    assert rms(denoised(student, y) - x) < 0.55 * rms(y - x)


@pytest.mark.parametrize("offset", [100.0, 2000.0, -500.0])
def test_results_do_not_depend_on_an_offset(student, offset):
    y = 300 * SCENE + np.random.default_rng(0).normal(0, 20, SCENE.shape)
    assert rms(denoised(student, y + offset) - offset - denoised(student, y)) < 0.01 * 20


@pytest.mark.parametrize("width", [1.8, 2.5])
def test_points_keep_peak_and_flux(student, width):
    rows, columns = np.mgrid[:96, :96]
    star = np.exp(-((rows - 48) ** 2 + (columns - 50) ** 2) / (2 * (width / 2.355) ** 2))
    x = 200 + 3000 * star
    y = x + np.random.default_rng(5).normal(0, 1, x.shape) * np.sqrt(x)
    out = denoised(student, y)
    assert abs(out[48, 50] / x[48, 50] - 1) < 0.12
    near = star > 1e-3
    assert abs((out - 200)[near].sum() / (x - 200)[near].sum() - 1) < 0.04


@pytest.mark.parametrize("value", [65535.0, -4000.0])
def test_a_hot_pixel_keeps_its_value_and_disturbs_little(student, value):
    y = (100 + 50 * SCENE + np.random.default_rng(0).normal(0, 5, SCENE.shape)).astype(np.float32)
    hot = y.copy()
    hot[30, 40] = value
    plain, other = denoised(student, y), denoised(student, hot)
    assert other[30, 40] == pytest.approx(value, abs=0.03 * abs(value))
    far = np.ones(y.shape, bool)
    far[20:41, 30:51] = False
    assert abs(plain - other)[far].max() < 10


@pytest.mark.parametrize("channels", [1, 3])
def test_hot_and_dead_pixels_that_touch_do_not_hide_the_rest(channels):
    student = load_model({1: "gray-hg-blind-full", 3: "color-hg-blind-full"}[channels], torch.device("cpu"))
    random = np.random.default_rng(0)
    x = np.repeat(200 + 100 * SCENE[..., None], channels, 2)
    y = (x + random.normal(0, 10, x.shape)).astype(np.float32)
    strange = random.random(x.shape) < 0.01
    strange[20:22, 30], strange[60, 40:42] = True, True
    broken = np.where(strange, random.choice([-20000, 30000, 60000], x.shape), y).astype(np.float32)
    out = denoised(student, broken).reshape(x.shape)
    assert rms((out - x)[~strange]) < 1.1 * rms(denoised(student, y).reshape(x.shape) - x)
    assert (out == broken)[strange].all()


@pytest.mark.parametrize("mean, left", [(0.1, 0.5), (1, 0.35), (5, 0.4)])
def test_photon_counts_keep_their_mean(through, mean, left):
    x = SCENE / SCENE.mean() * mean
    y = np.random.default_rng(6).poisson(x).astype(np.uint16)
    out = tifffile.imread(through("a.tif", y))
    assert (out.dtype == np.float32) == (mean <= 5)
    assert out.mean() == pytest.approx(y.mean(), rel=0.01)
    assert rms(out - x) < left * rms(y - x)


# ------------------------------------------------------------------------------------- what carries no noise


@pytest.mark.parametrize("kind", ["student", "stage 1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_exact_black_stays_black_and_holes_stay_holes(kind, channels):
    rows, columns = np.mgrid[:90, :100]
    disc = ((rows - 45) ** 2 + (columns - 50) ** 2 < 38**2)[..., None]
    y = np.where(disc, 0.5 + np.random.default_rng(0).normal(0, 0.1, (90, 100, channels)), 0).astype(np.float32)
    out = denoised(tiny(kind, channels), y).reshape(y.shape)
    assert (out[~disc[..., 0]] == 0).all() and (out[45, 50] != y[45, 50]).all()
    y[:8], y[:, -9:] = np.nan, np.nan
    out = denoised(tiny(kind, channels), y).reshape(y.shape)
    assert (np.isnan(out) == np.isnan(y)).all()


def test_noise_is_not_taken_for_a_constant():
    random = torch.Generator().manual_seed(0)
    for y in (torch.randn(1, 1, 80, 80, generator=random), (torch.rand(1, 1, 80, 80, generator=random) < 0.1).float()):
        assert not without_noise(y).any()
        assert (outlying(y)[1] == 0).all()


def test_small_pictures_and_checkerboards_have_no_outliers(rng):
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2.0
    for y in (board, *(torch.randn(*size, generator=rng) for size in ((6, 1), (1, 7), (2, 2), (3, 3), (1, 1)))):
        _, beyond, hot = outlying(y[None, None])
        assert not beyond.any() and not hot.any()


def test_the_peak_of_a_star_is_not_hot():
    rows, columns = np.mgrid[:96, :96]
    for width in (1.4, 2, 3):
        star = np.exp(-((rows - 48) ** 2 + (columns - 50) ** 2) / (2 * (width / 2.355) ** 2))
        y = 200 + 3000 * star + np.random.default_rng(5).normal(0, 10, star.shape)
        assert not outlying(torch.from_numpy(y)[None, None])[2].any()


def test_hot_pixels_of_sparse_counts_are_found():
    y = torch.from_numpy(np.random.default_rng(0).poisson(0.1, (128, 128)).astype(np.float32))
    y[::20, ::20] = 50
    assert (outlying(y[None, None])[2][0, 0] == (y == 50)).all()


def test_scale_is_that_of_the_part_with_noise(rng):
    y = torch.zeros(1, 1, 200, 200)
    y[..., 64:128, 64:128] = 5 + 0.2 * torch.randn(1, 1, 64, 64, generator=rng)
    m, s = scale_of(y)
    assert m.item() == pytest.approx(5, rel=0.01) and s.item() == pytest.approx(0.2, rel=0.1)


def test_an_empty_frame_stays_empty(through):
    stack = np.stack([np.random.default_rng(k).poisson(100 + 1500 * CELLS * k) for k in range(3)]).astype(np.uint16)
    stack[0] = 0
    out = tifffile.imread(through("stack.tif", stack))
    assert out.shape == stack.shape and abs(out[0]).max() == 0
    assert out[1:].mean((1, 2)) == pytest.approx(stack[1:].mean((1, 2)), rel=0.01)
    one = np.zeros((50, 60), np.uint16)
    one[20, 30] = 3000
    np.testing.assert_array_equal(tifffile.imread(through("one.tif", one)), one)


# ---------------------------------------------------------------------------------------------------- kinds

NOISY = 5 * SCENE - 2 + np.random.default_rng(1).normal(0, 0.5, SCENE.shape)
KINDS = {
    "float about zero": ("a.tif", NOISY.astype(np.float32)),
    "double": ("a.tif", NOISY + 40.0),
    "counts as floats": ("a.tif", (4000 * (NOISY + 4)).astype(np.float32)),
    "int16": ("a.tif", np.rint(4000 * NOISY).astype(np.int16)),
    "int32": ("a.tif", np.rint(4e6 * NOISY).astype(np.int32)),
    "uint32": ("a.tif", np.rint(4000 * (NOISY + 4)).astype(np.uint32)),
    "npy": ("a.npy", NOISY.astype(np.float32)),
    "npy, whole numbers": ("a.npy", np.rint(4000 * (NOISY + 4)).astype(np.uint16)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_keeps_type_scale_and_sign(through, kind):
    name, pixels = KINDS[kind]
    made = through(name, pixels)
    out = np.load(made) if made.suffix == ".npy" else tifffile.imread(made)
    assert made.suffix == name[1:] and out.dtype == (np.float32 if pixels.dtype == np.float64 else pixels.dtype)
    unit = pixels.std() / NOISY.std()
    offset = pixels.mean() - unit * NOISY.mean()
    assert rms((out - offset) / unit - (5 * SCENE - 2)) < 0.25  # of 0.5


@pytest.mark.parametrize(("depth", "dtype"), [("same", np.uint16), ("float", np.float32)])
def test_depth(through, depth, dtype):
    y = np.random.default_rng(0).poisson(1 + 0 * SCENE).astype(np.uint16)
    assert tifffile.imread(through("a.tif", y, "--depth", depth)).dtype == dtype


def test_nan_and_transparent_parts_stay(through):
    y = NOISY.astype(np.float32)
    y[:8], y[:, -8:] = np.nan, np.nan
    out = tifffile.imread(through("a.tif", y))
    assert (np.isnan(out) == np.isnan(y)).all() and rms(out - (5 * SCENE - 2)) < 0.25
    noise = np.random.default_rng(2).normal(0, 25, (*SCENE.shape, 3))
    colours = np.rint((255 * SCENE[..., None] + noise).clip(0, 255)).astype(np.uint8)
    gray, rgba = colours[..., 0], np.dstack([colours, np.full(SCENE.shape, 255, np.uint8)])
    rgba[:20, :, 3], rgba[40:50, :, 3] = 0, 100
    out = np.asarray(Image.open(through("b.png", rgba, checkpoint=COLOUR)))
    np.testing.assert_array_equal(out[..., 3], rgba[..., 3])
    np.testing.assert_array_equal(out[:20], rgba[:20])
    assert rms(out[20:, :, 0] - 255 * SCENE[20:]) < 0.6 * rms(gray[20:] - 255 * SCENE[20:])


def test_what_is_ambiguous_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 9, 9)))
    np.save(tmp_path / "b.npy", np.zeros((9, 9), complex))
    np.save(tmp_path / "c.npy", np.full((9, 9), np.nan))
    for name, words in {
        "a.npy": "shape .4, 9, 9.; save",
        "b.npy": "complex128 values; save it",
        "c.npy": "NaN",
    }.items():
        with pytest.raises(UsageError, match=words):
            read_image(tmp_path / name)
    for images in (np.zeros((4, 4)), torch.zeros(4, 4), torch.zeros(0, 1, 4, 4), torch.zeros(1, 1, 4, 4).byte()):
        with pytest.raises(ValueError, match=r"a float tensor \(N,C,H,W\)"):
            denoise_batch(tiny("student"), images)


def test_profile_exif_and_dpi_are_kept(through):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", 6
    picture = Image.fromarray(np.dstack([(255 * SCENE).astype(np.uint8)] * 3))
    for name in ("a.jpg", "b.png"):
        made = through(
            name, lambda p: picture.save(p, icc_profile=profile, exif=exif, dpi=(300, 300)), checkpoint=COLOUR
        )
        with Image.open(made) as image:
            assert image.info["icc_profile"] == profile and image.getexif()[0x010F] == "a camera"
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1) and 0x0112 not in image.getexif()


def test_stacks_of_one_name_in_folders_of_one_name(run, tmp_path):
    stack = np.random.default_rng(0).integers(0, 65536, (2, 24, 24), np.uint16)
    for top in "xy":
        (tmp_path / top / "same").mkdir(parents=True)
        tifffile.imwrite(tmp_path / top / "same" / "s.tif", stack if top == "x" else 65535 - stack, imagej=True)
    files = f"{tmp_path}/x/same/s.tif {tmp_path}/y/same/s.tif"
    ok(run("test", f"--checkpoint {STUDENT} --data {files} --save {tmp_path}/out"))
    made = sorted((tmp_path / "out").glob("*_denoised*.tif"))
    assert len(made) == 2 and not np.array_equal(*map(tifffile.imread, made))


def test_the_peak_of_floats_is_their_range(run, tmp_path):
    x = (5 * SCENE - 2).astype(np.float32)
    for name, pixels in {"noisy": NOISY.astype(np.float32), "clean": x}.items():
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", pixels)
    line = f"--checkpoint {STUDENT} --data {tmp_path}/noisy --clean {tmp_path}/clean --json {tmp_path}/r.json"
    ok(run("test", line))
    (row,) = json.loads((tmp_path / "r.json").read_text())["images"]
    assert row["peak"] == pytest.approx([x.min(), x.max()])
    assert row["noisy"]["psnr"] == pytest.approx(20 * np.log10(np.ptp(x) / rms(NOISY - x)), abs=0.01)
    assert row["distilled"]["psnr"] > row["noisy"]["psnr"] + 6


@pytest.mark.parametrize("kind", ["dim", "signed"])
def test_both_stages_train_on_any_scale(run, pictures, tmp_path, kind):
    """Clean photographs for stage 2 are brought to the brightness of the noisy pictures."""
    (tmp_path / "noisy").mkdir()
    for k in range(3):
        y = 300 * SCENE + np.random.default_rng(k).normal(0, 20, SCENE.shape) + (100 if kind == "dim" else -150)
        tifffile.imwrite(tmp_path / "noisy" / f"{k}.tif", np.rint(y).astype(np.uint16 if kind == "dim" else np.int16))
    ok(run("train_dbsn", f"--name s1 --noisy {tmp_path}/noisy --noise awgn {TINY} --steps 2"))
    line = f"--name s2 --teacher s1 --clean {pictures}/gray --noisy {tmp_path}/noisy {TINY2} --steps 2"
    code, out, err = run("train_distill", line)
    assert code == 0 and "brought to that range" in out + err
    ok(run("test", f"--checkpoint s1 s2 --data {tmp_path}/noisy --save {tmp_path}/out"))
    code, _, err = run("train_dbsn", f"--name w --noisy {tmp_path}/noisy --noise awgn --units white {TINY} --steps 1")
    assert code == 0


def test_white_units_refuse_floats_without_a_white_level(run, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", (4000 * (NOISY + 4)).astype(np.float32))
    line = f"--noisy {tmp_path}/a.tif --noise awgn {TINY} --steps 1"
    code, _, err = run("train_dbsn", f"--name a {line} --units white")
    assert code == 2 and "--white-level" in err and "a.tif" in err
    ok(run("train_dbsn", f"--name a {line}"))


def test_a_learned_level_holds_for_one_scale(run, tmp_path):
    tifffile.imwrite(tmp_path / "dim.tif", (2000 * NOISY.clip(0, 1)).astype(np.uint16))
    ok(run("train_dbsn", f"--name cnn --noisy {tmp_path}/dim.tif --noise hg --mode gray {TINY} --steps 1"))
    model = load_model("cnn", "cpu", tmp_path)
    tifffile.imwrite(tmp_path / "other.tif", NOISY.clip(0, 1).astype(np.float32))
    code, _, err = run("test", f"--checkpoint cnn --data {tmp_path}/other.tif --save {tmp_path}/out")
    assert code == 2 and "is white to the model: say with --white-level" in err
    ok(run("test", f"--checkpoint cnn --data {tmp_path}/other.tif --save {tmp_path}/out --white-level 1"))
    bright = (40_000 * NOISY.clip(0, 1)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "bright.tif", bright)
    code, _, err = run("test", f"--checkpoint cnn --data {tmp_path}/bright.tif --save {tmp_path}/out")
    assert code == 2 and "values up to 4e+04, and 2000 is white to the model: say with --white-level" in err
    with pytest.raises(ValueError, match="say with white="):
        denoise(model, bright)
    denoise(model, (40_000 * NOISY.clip(0, 1)).astype(np.uint16), white=40_000)
    denoise(model, torch.from_numpy((2000 * NOISY.clip(0, 1)).astype(np.uint16)))


def test_a_white_level_that_is_far_too_high_is_told(run, tmp_path):
    y = np.random.default_rng(0).normal(2000 + 1500 * SCENE, 100).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", y)
    for white, expected in ((65535, True), (4095, False)):
        code, _, err = run(
            "test", f"--checkpoint {STUDENT} --data {tmp_path}/a.tif --save {tmp_path}/{white} --white-level {white}"
        )
        assert code == 0, err
        assert ("far below --white-level" in err) == expected


def test_values_too_large_for_32_bits_are_refused_alone(run, tmp_path):
    for name, factor in (("a", 1e20), ("b", 1.0)):
        tifffile.imwrite(tmp_path / f"{name}.tif", (factor * NOISY).astype(np.float32))
    code, _, err = run("test", f"--checkpoint gray-hg-blind --data {tmp_path} --save {tmp_path}/out --on-bad skip")
    assert code == 1 and "a.tif holds values beyond 1e+15" in err and "divide them by a constant" in err
    assert (tmp_path / "out" / "b_denoised.tif").is_file()
