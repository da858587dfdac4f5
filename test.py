"""Denoises images with checkpoints of either stage and, where clean images are known, measures.

    python test.py --checkpoint awgn25 awgn25-full --data bsd68 --noise awgn --sigma 25 --json r.json --save pictures/
    python test.py --checkpoint mine-full --data my_pictures/ --save denoised/
    python test.py --data bsd68 --noise awgn --sigma 25
    python test.py --baseline wavelet nlm bm3d --data bsd68 --noise awgn --sigma 25

The third measures the noisy input alone. The fourth measures classical denoisers, which are told the true level.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tqdm import tqdm

from data.images import gray_of
from data.inputs import Input, Request, Sample, check_scale, find_inputs, keep_inputs, read_sample, repeated
from data.pictures import Stacks, save_pictures
from models import load_model
from models.checks import channels_have_one_noise, check_noise, shows_no_noise
from models.inference import Denoised, denoise_batch
from models.noise import NOISES, NoiseModel
from models.noise.correlation import Shared, shared_noise
from models.noise.in_turn import InTurn
from models.outliers import filled, known_part, outlying
from models.phases import weights_of
from models.result_checks import Used, check_result
from models.stride import stride_for
from models.units import scale_of, shown_range, units_in_use
from options.base import noise_of
from options.test import TestOptions
from utils.advice import Looker
from utils.baselines import check_baselines, denoise_classically
from utils.device import choose_device, choose_dtype
from utils.distributed import World, join
from utils.errors import EXIT_FAILURE, RunError, UsageError, run_script
from utils.files import atomic_write_json, check_writable
from utils.metrics import measure, shares_within
from utils.page import Reporter, write_page
from utils.provenance import code_version
from utils.report import (
    NO_NOISE,
    Row,
    little_removed,
    method_name,
    noise_not_trained_on,
    not_removed,
    note,
    print_table,
    smoothed,
    test_record,
    too_weak_for,
)

DIM = 0.25  # of white
DARKEST = 0.01  # greatest value of floats that may be meant as 0..1
FEW = 0.3  # of the details of a picture: what a student removes at least of noise that it knows


def main(argv: list[str] | None = None) -> int:
    opt = TestOptions().parse(argv)
    with join(opt.device) as world:
        return evaluate(opt, world, sys.argv[1:] if argv is None else argv)


def evaluate(opt, world: World, argv: list[str]) -> int:
    code = code_version()  # now: files may be edited while this works
    check_baselines(opt.baseline)
    device = choose_device(opt.device, world.local_rank, opt.deterministic)
    models = [load_model(name, device, opt.checkpoints_dir) for name in opt.checkpoint]
    for model in models:
        model.dtype = choose_dtype(opt.amp, device)
        if opt.protocol == "none" and not opt.white_level:
            model.units = units_in_use(model)
    inputs, white_level = find_inputs(request_of(opt), models)
    noise = noise_of(opt) if opt.noise else None
    if opt.protocol == "laine":
        if world.size > 1:
            raise UsageError("--protocol laine draws image after image: run it in one process")
        inputs, noise = repeated(inputs, opt.repeats), InTurn(noise)
    with world.main_first():
        prepare_outputs(opt, inputs)

    share = range(world.rank, len(inputs), world.size)
    progress = tqdm(share, desc="images", disable=None if world.main else True)
    reporter = Reporter.of(len(inputs), Looker.of(opt, device)) if opt.report else None
    stacks = Stacks(opt.save, inputs) if opt.save and models else None
    rows, unusable = [], set()
    for k in progress:
        rows.append(test_image(k, inputs[k], opt, models, white_level, noise, reporter))
        if rows[-1].problem:
            unusable.add(inputs[k].path)
        if stacks and world.size == 1:
            stacks.put_together(inputs[k], unusable)

    # from here on process 0 speaks for all
    rows = sorted((row for part in world.gather(rows) for row in part), key=lambda row: row.index)
    if not world.main:
        return 0
    bad = [row for row in rows if row.problem]
    if len(bad) == len(rows):
        raise RunError(f"none of the {len(rows)} images could be used; the first: {bad[0].problem}")
    table = test_record(opt, argv, code, device, models, rows)
    if opt.json:
        atomic_write_json(opt.json, table)
    if opt.report:
        write_page(opt.report, table, [row for row in rows if not row.problem])
    if stacks and world.size > 1:  # the pages of a stack are shared out
        for source in inputs:
            stacks.put_together(source, bad={inputs[row.index].path for row in bad})
    print_table(table)
    tell(rows, opt, bool(models))
    if bad:
        problems = [row.problem for row in bad]
        print(f"{len(bad)} of {len(rows)} images were skipped:", *problems, sep="\n  ", file=sys.stderr)
    return EXIT_FAILURE if bad else 0


def tell(rows: list[Row], opt, denoised: bool) -> None:
    """Notes on images and results that somebody should know of. denoised: whether there are results."""
    words = "hot and dead pixels, far outside the range of the others and alone there, keep their values"
    note(words, [f"{row.shown}: {row.hot_pixels}" if row.hot_pixels else None for row in rows] if denoised else [])
    words = (
        "colour pictures made gray, 0.30 of red, 0.59 of green and 0.11 of blue: where channels are pictures of their "
        "own, save each as a page of a stack"
    )
    note(words, [row.shown if row.merged else None for row in rows])
    words = (
        "TIFF files with three channels as planes, taken for red, green and blue: where they are channels of a "
        "microscope, save each as a page of a stack, for weights for gray pictures"
    )
    note(words, [row.shown if row.planes else None for row in rows])
    words = "pictures far below --white-level, in which networks remove less: leave it out, or give a lower one"
    note(words, [f"{row.shown}: {row.dim:.4g} at most" if row.dim is not None else None for row in rows])
    words = "results in 32-bit floats (NAME_denoised.tif): integers would be too coarse, or cut values (--depth same)"
    note(words, [row.shown if row.in_floats and opt.depth == "auto" else None for row in rows])
    note("noise that neighbours share: denoised with a stride (--stride)", [row.strides_in_words for row in rows])
    kept = "; the images are written as they were" if opt.on_doubt == "keep" and opt.save else ""
    note(
        f"results that may be worse than the images, for their noise{kept}",
        [word for row in rows for word in row.unknown],
    )
    doubts = [f"{row.shown}: {'; '.join(row.doubts)}" if row.doubts else None for row in rows]
    note(f"results that may be wrong (--json has the numbers){kept}", doubts)


def request_of(opt) -> Request:
    return Request(
        opt.data,
        opt.data_root,
        opt.clean,
        opt.mode,
        opt.noise,
        tuple(opt.baseline),
        opt.white_level,
        published=opt.protocol != "none",
        skip_bad=opt.on_bad == "skip",
    )


def test_image(
    k: int,
    source: Input,
    opt,
    models: list,
    white_level: float | None,
    noise: NoiseModel | InTurn | None,
    reporter: Reporter | None = None,
) -> Row:
    """Denoises image k by every baseline and checkpoint, measures, saves and reports the results."""
    row = Row(k, str(source.path), source.shown, source.problem)
    if row.problem:
        return row
    try:
        sample = read_sample(source, opt.mode, white_level, noise)
        if opt.protocol == "none" and not opt.white_level and any(model.level_is_learned for model in models):
            check_scale(source, sample, white_level)
    except UsageError as error:
        if opt.on_bad == "stop":
            raise
        row.problem = str(error)
        return row

    images = {"noisy": sample.noisy} | classical(sample, opt, row)
    results, measured = denoised(sample, source, opt, models, row)
    images |= results
    compare(row, sample, source, white_level, images)
    kept = models and opt.on_doubt == "keep" and (row.unknown or row.doubts)
    if kept:
        images["kept"] = sample.noisy  # the last one is what is written
    std, noise_map = (as_image(measured.std), as_image(measured.noise_level)) if measured else (None, None)
    if opt.save:
        depth = "same" if kept else opt.depth
        row.in_floats = save_pictures(opt.save, source, sample, images, std, noise_map, depth)
    if reporter:
        reporter.add(row, sample, images[list(images)[-1]], std)
    return row


def classical(sample: Sample, opt, row: Row) -> dict[str, np.ndarray]:
    """What the baselines make of an image, which are told its noise level: (H,W,C) by their names."""
    images = {}
    for baseline in opt.baseline:
        started = time.perf_counter()
        images[baseline] = denoise_classically(baseline, sample.noisy, sample.level / 255)
        row.seconds[baseline] = time.perf_counter() - started
    return images


def denoised(
    sample: Sample, source: Input, opt, models: list, row: Row
) -> tuple[dict[str, np.ndarray], Denoised | None]:
    """What the checkpoints make of an image, which are not told its noise level: (H,W,C) by the method.

    With them the result whose level and uncertainty count: the first one of stage 1.
    """
    noisy = Noisy.of(sample)
    row.hot_pixels, row.merged, row.planes = noisy.hot_pixels, sample.merged, sample.planes
    if opt.white_level and opt.protocol == "none" and float(noisy.seen.max()) < DIM:
        row.dim = float(noisy.seen.max()) * sample.white
    if models:
        known = known_part(torch.where(noisy.holes[0], torch.nan, noisy.stretched))
        row.checks["input"] = check_noise(filled(known[None])[0])
        row.shared = shared_noise(noisy.stretched) if row.neighbours_share_noise else None
    independent = opt.noise is not None and not NOISES[opt.noise].shared  # whatever a check takes for shared noise
    shared = None if independent else row.shared
    images, measured = {}, None
    for model in models:
        result = denoise_with(model, noisy, row, opt, shared)
        images |= {method_name(kind, model, models): image for kind, image in images_of(result).items()}
        row.unknown += [f"{row.shown}: {remark}" for remark in remarks(model, noisy, result, row, opt)]
        if model.stage == 1 and sample.clean is not None:
            row.within[model.name] = shares_within(as_image(result.image) - sample.clean, as_image(result.std))
        if model.stage == 1 and measured is None:
            measured, row.estimated = result, level_found(noisy, result)
    suits = opt.stride is None and shared is not None  # then the stride suits the noise
    row.known = suits or all(m.shared_noise or (opt.stride or 1) > 1 or (m.stage == 1 and m.apart > 1) for m in models)
    return images, measured


def compare(row: Row, sample: Sample, source: Input, white_level: float | None, images: dict[str, np.ndarray]) -> None:
    """How near the images come to the clean one, for the row."""
    row.level, row.white = sample.level, sample.white
    if sample.clean is None:
        return
    row.peak = peak_of(sample, source.header.dtype, white_level)
    row.figures = {
        name: measure(sample.clean, image, name != "noisy", row.peak, np.isnan(sample.noisy))
        for name, image in images.items()
    }
    if row.peak:
        row.peak = [float(end) * sample.white for end in row.peak]


@dataclass(frozen=True)
class Noisy:
    """A noisy image as networks and checks see it.

    y: (1,C,H,W) with NaN in holes, in units of the sample. seen: without holes and outliers. beyond: what single pixels
    have beyond that. low, span: least value and range of what is seen. hot_pixels: the number of hot and dead ones.
    one_gray: whether the channels of a colour image show one gray picture.
    """

    y: torch.Tensor
    seen: torch.Tensor
    beyond: torch.Tensor
    low: float
    span: float
    hot_pixels: int
    one_gray: bool

    @classmethod
    def of(cls, sample: Sample) -> Noisy:
        y = torch.from_numpy(np.ascontiguousarray(sample.noisy.transpose(2, 0, 1)))[None]
        seen, beyond, hot = outlying(filled(y))
        low, high = shown_range(seen.numpy())
        hot_pixels = int((hot & ~y.isnan()).any(1).sum())
        one_gray = y.shape[1] == 3 and gray_of(sample.noisy) is not None
        return cls(y, seen, beyond, low, high - low, hot_pixels, one_gray)

    @property
    def holes(self) -> torch.Tensor:
        return self.y.isnan()

    @cached_property
    def stretched(self) -> torch.Tensor:
        """(C,H,W), 0..1: checks are in 255 parts of the range of what is seen."""
        return self.stretch(self.seen)[0]

    @cached_property
    def one_noise(self) -> bool:
        """Whether its channels have the same noise."""
        return channels_have_one_noise(self.stretched)

    def stretch(self, image: torch.Tensor) -> torch.Tensor:
        return (image - self.low) / self.span

    def white_to(self, model) -> float:
        """The value that is white to a network trained in white units; 1 where no such is known."""
        if model.units == "white" or model.config["units"] == "noise":
            return 1.0
        return float(model.views(self.seen)[-1].unit)


def denoise_with(model, noisy: Noisy, row: Row, opt, shared: Shared | None) -> Denoised:
    """What a model makes of an image, timed and checked for the image's row. shared: see stride_for."""
    started = time.perf_counter()
    model.stride = opt.stride or stride_for(model, noisy.stretched[None], shared)
    result = denoise_batch(model, noisy.y, opt.tile, opt.self_ensemble, progress=True)
    file = str(model.file)
    row.seconds[file] = row.seconds.get(file, 0.0) + time.perf_counter() - started
    if result.tiled:
        row.tiled.add(file)
    if model.stride != 1:
        row.strides[model.name] = weights_of(model.stride)
    check(row, model, noisy, result)
    return result


def images_of(result: Denoised) -> dict[str, np.ndarray]:
    """What the tables show of a result, (H,W,C) each, by kind."""
    if result.mu is None:
        return {"distilled": as_image(result.image)}
    return {"mu": as_image(result.mu), "posterior": as_image(result.image)}


def check(row: Row, model, noisy: Noisy, result: Denoised) -> None:
    """Checks the result of a model, for the row."""
    image = torch.where(noisy.holes, noisy.seen, result.image - noisy.beyond)
    level = None if result.noise_level is None else result.noise_level[0] / noisy.span
    independent = not (row.neighbours_share_noise or model.shared_noise or model.stride != 1)
    refined = bool(model.config.get("refined", False))
    photographs = model.shared_noise and not model.independent_noise and not refined
    used = Used(model.stage, model.stride != 1, model.shared_noise, photographs, refined)
    row.checks[model.name] = check_result(
        noisy.stretched, noisy.stretch(image)[0], level, row.shared, independent, used
    )


def remarks(model, noisy: Noisy, result: Denoised, row: Row, opt) -> list[str]:
    """What is to be said of noise that a model was not trained on."""
    words = unsuited(model, noisy, row, opt)
    if model.stage == 2:
        found = [words or too_weak(model, noisy, result, row)]
    else:
        level, predicted = level_found(noisy, result), (result.mu - noisy.y).nan_to_num() != 0  # without what is kept
        spread = float(result.mu[predicted].std(correction=0)) if predicted.any() else 0.0
        found = [words, noise_not_trained_on(model, level / noisy.white_to(model), spread) if level else None]
    return [remark for remark in found if remark]


def unsuited(model, noisy: Noisy, row: Row, opt) -> str | None:
    """A word on noise of a kind that the model was not trained on; None where it was, or where nobody knows."""
    if opt.noise is None and model.channels == 3 and noisy.one_gray:
        return (
            f"its channels show one gray picture and have the same noise, which {model.name} takes for noise of "
            "three: use gray-hg-blind-full with --mode gray"
        )
    if opt.protocol != "none":
        return None
    one_noise = not row.neighbours_share_noise and noisy.one_noise
    return not_removed(model, one_noise) or smoothed(model, row.neighbours_share_noise, row.may_be_texture, one_noise)


def too_weak(student, noisy: Noisy, result: Denoised, row: Row) -> str | None:
    """A word on noise that is too weak for a student, or cannot be seen; None where it changed nothing.

    The noise is weaker than the details of the picture, or of its flattest blocks. Where these are strong and little
    was removed, they may be noise of another kind.
    """
    shift = (result.image - noisy.y).nan_to_num()
    if not shift.any():
        return None
    if shows_no_noise(noisy.stretched):
        return NO_NOISE
    removed = float(shift[shift != 0].square().mean().sqrt())  # of what is not kept, such as a border
    seen = removed
    if student.independent_noise:
        seen = float(scale_of(noisy.seen)[1])
    elif row.shared:
        seen = math.sqrt(row.shared.variance) * noisy.span
    removed, seen = (255 * level / noisy.white_to(student) for level in (removed, seen))
    words = too_weak_for(student, min(removed, seen))
    return little_removed(removed, seen, student.stride != 1) if words and removed < FEW * seen else words


def level_found(noisy: Noisy, result: Denoised) -> float:
    """The level that stage 1 found, 0..255 units: root mean square over the image; 0 where the result is the image."""
    if float((result.image - noisy.y).nan_to_num().abs().max()) == 0:  # without noise there is nothing to know
        return 0.0
    known = ~noisy.holes.any(1, keepdim=True)
    return 255 * result.noise_level.expand_as(known)[known].square().mean().sqrt().item()


def peak_of(sample: Sample, dtype: np.dtype, white_level: float | None) -> tuple[float, float] | None:
    """The range that is the peak of PSNR: None for 0..1, else the clean image's: 32 bits, signs and other floats."""
    low, high = float(np.nanmin(sample.clean)), float(np.nanmax(sample.clean))
    usual = dtype in (np.uint8, np.uint16) or (dtype.kind == "f" and low >= 0 and DARKEST <= high <= 1)
    return None if white_level or usual or low == high else (low, high)


def as_image(t: torch.Tensor) -> np.ndarray:
    """(1,C,H,W) -> (H,W,C)"""
    return t[0].permute(1, 2, 0).numpy()


def prepare_outputs(opt, inputs: list[Input]) -> None:
    """Creates the folders of --save, --json and --report before any work is done.

    Refuses a folder that the images are in, where outputs could replace inputs.
    """
    keep_inputs(inputs, {"--save": opt.save, "--json": opt.json, "--report": opt.report})
    folders = (
        ("--save", opt.save),
        ("--json", opt.json and opt.json.parent),
        ("--report", opt.report and opt.report.parent),
    )
    for flag, folder in folders:
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{flag}: cannot create the folder {folder} ({error.strerror})") from error
        if folder:
            check_writable(folder)


if __name__ == "__main__":
    run_script(main)
