"""Denoises images with checkpoints of either stage and, where clean images are known, measures.

    python test.py --checkpoint awgn25 awgn25-full --data bsd68 --noise awgn --sigma 25 --json r.json --save pictures/
    python test.py --checkpoint mine-full --data my_pictures/ --save denoised/
    python test.py --data bsd68 --noise awgn --sigma 25
    python test.py --baseline wavelet nlm bm3d --data bsd68 --noise awgn --sigma 25

The third measures the noisy input alone. The fourth measures classical denoisers, which are told the true level.
"""

from __future__ import annotations

import json
import math
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

from data.images import gray_of
from data.inputs import Input, Request, Sample, find_inputs, keep_inputs, read_sample, repeated
from data.pictures import put_stacks_together, save_pictures
from models import load_model
from models.inference import denoise_batch, filled, known_part, outlying
from models.noise import NoiseModel
from models.noise.correlation import shared_noise
from models.noise.in_turn import InTurn
from models.phases import weights_of
from models.stride import stride_for
from models.units import USUAL_NOISE, scale_of, shown_range
from options.base import noise_of
from options.test import TestOptions
from utils.advice import Looker
from utils.baselines import check_baselines, denoise_classically
from utils.device import choose_device, choose_dtype
from utils.distributed import World, join
from utils.doubts import channels_have_one_noise, check_noise, check_result, shows_no_noise
from utils.errors import EXIT_FAILURE, RunError, UsageError, run_script
from utils.files import atomic_write_text
from utils.files import shown as shown_path
from utils.metrics import measure, shares_within
from utils.page import Reporter, write_page
from utils.provenance import code_version
from utils.report import (
    NO_NOISE,
    Row,
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
        if opt.protocol == "none" and not opt.white_level and not model.level_is_learned:
            model.units = "noise"  # whatever the scale of the files
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
    rows = [test_image(k, inputs[k], opt, models, white_level, noise, reporter) for k in progress]

    # from here on process 0 speaks for all
    rows = sorted((row for part in world.gather(rows) for row in part), key=lambda row: row.index)
    if not world.main:
        return 0
    bad = [row for row in rows if row.problem]
    if len(bad) == len(rows):
        raise RunError(f"none of the {len(rows)} images could be used; the first: {bad[0].problem}")
    table = test_record(opt, argv, code, device, models, rows)
    if opt.json:
        atomic_write_text(opt.json, json.dumps(table, indent=1) + "\n")
    if opt.report:
        write_page(opt.report, table, [row for row in rows if not row.problem])
    if opt.save and models:
        put_stacks_together(opt.save, inputs, bad={inputs[row.index].path for row in bad})
    print_table(table)
    words = "hot and dead pixels, far outside the range of the others and alone there, keep their values"
    note(words, [f"{row.shown}: {row.hot_pixels}" if row.hot_pixels else None for row in rows] if models else [])
    words = "pictures far below --white-level, in which networks remove less: leave it out, or give a lower one"
    note(words, [f"{row.shown}: {row.dim:.4g} at most" if row.dim is not None else None for row in rows])
    note("noise that neighbours share: pixels were taken apart (--stride)", [row.strides_in_words for row in rows])
    kept = "; the images are written as they were" if opt.on_doubt == "keep" and opt.save else ""
    note(
        f"results that may be worse than the images, for their noise{kept}",
        [word for row in rows for word in row.unknown],
    )
    doubts = [f"{row.shown}: {'; '.join(row.doubts)}" if row.doubts else None for row in rows]
    note(f"results that may be wrong (--json has the numbers){kept}", doubts)
    if bad:
        problems = [row.problem for row in bad]
        print(f"{len(bad)} of {len(rows)} images were skipped:", *problems, sep="\n  ", file=sys.stderr)
    return EXIT_FAILURE if bad else 0


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

    # the noisy image
    try:
        sample = read_sample(source, opt.mode, white_level, noise)
    except UsageError as error:
        if opt.on_bad == "stop":
            raise
        row.problem = str(error)
        return row
    images, std, level = {"noisy": sample.noisy}, None, None

    # what the baselines make of it, which are told its noise level
    for baseline in opt.baseline:
        started = time.perf_counter()
        images[baseline] = denoise_classically(baseline, sample.noisy, sample.level / 255)
        row.seconds[baseline] = time.perf_counter() - started

    # what the checkpoints make of it, which are not
    y = torch.from_numpy(np.ascontiguousarray(sample.noisy.transpose(2, 0, 1)))[None]  # 1,C,H,W
    seen, beyond, hot = outlying(filled(y))
    row.hot_pixels = int((hot & ~y.isnan()).any(1).sum())
    if opt.white_level and opt.protocol == "none" and float(seen.max()) < DIM:
        row.dim = float(seen.max()) * sample.unit
    low, high = shown_range(seen.numpy())
    shown = (seen[0] - low) / (high - low)  # checks are in 255 parts of this range
    if models:
        known = known_part(torch.where(y[0].isnan(), torch.nan, shown))
        row.checks["input"] = check_noise(filled(known[None])[0])
        row.shared = shared_noise(shown) if row.neighbours_share_noise else None
    one_noise = bool(models) and not row.neighbours_share_noise and channels_have_one_noise(shown)
    shared = row.shared if opt.protocol == "none" else None  # published noise is independent
    for model in models:
        started = time.perf_counter()
        model.stride = opt.stride or stride_for(model, shown[None], shared)
        result = denoise_batch(model, y, opt.tile, opt.self_ensemble, progress=True)
        file = str(model.file)
        row.seconds[file] = row.seconds.get(file, 0.0) + time.perf_counter() - started
        if result.tiled:
            row.tiled.add(file)
        image = torch.where(y.isnan(), seen, result.image - beyond)
        noise_map = None if result.noise_level is None else result.noise_level[0] / (high - low)
        independent = not (row.neighbours_share_noise or model.shared_noise or model.stride != 1)
        seen_result = (image[0] - low) / (high - low)
        row.checks[model.name] = check_result(shown, seen_result, noise_map, row.shared, independent)
        if model.stride != 1:
            row.strides[model.name] = weights_of(model.stride)
        words = None
        if opt.protocol == "none":
            words = not_removed(model, one_noise)
            words = words or smoothed(model, row.neighbours_share_noise, row.may_be_texture, one_noise)
        if noise is None and model.channels == 3 and gray_of(sample.noisy) is not None:
            words = (
                f"its channels show one gray picture and have the same noise, which {model.name} takes for noise of "
                "three: use gray-hg-blind-full with --mode gray"
            )
        if words:
            row.unknown.append(f"{shown_path(source.name)}: {words}")
        if model.stage == 2:
            images[method_name("distilled", model, models)] = as_image(result.image)
            # the noise is weaker than what was removed, and than the details of the picture, or of its flattest blocks
            removed = level = float((result.image - y).nan_to_num().square().mean().sqrt())
            if model.independent_noise:
                level = min(removed, float(scale_of(seen)[1]))
            elif row.shared:
                level = min(removed, math.sqrt(row.shared.variance) * (high - low))
            level /= seen_as_one(model, seen)
            if removed and not words:
                words = NO_NOISE if shows_no_noise(shown) else too_weak_for(model, 255 * level)
                if words:
                    row.unknown.append(f"{shown_path(source.name)}: {words}")
            continue
        images[method_name("mu", model, models)] = as_image(result.mu)
        images[method_name("posterior", model, models)] = as_image(result.image)
        if sample.clean is not None:
            row.within[model.name] = shares_within(as_image(result.image) - sample.clean, as_image(result.std))
        known = ~y.isnan().any(1, keepdim=True)
        changed = bool((result.image - y).nan_to_num().abs().max() > 0)  # without noise there is nothing to know
        # root mean square over the image
        found = 255 * result.noise_level.expand_as(known)[known].square().mean().sqrt().item() if changed else 0.0
        spread = float(np.nanstd(result.mu.numpy()))
        words = noise_not_trained_on(model, found / seen_as_one(model, seen), spread)
        if changed and words:
            row.unknown.append(f"{shown_path(source.name)}: {words}")
        if std is None:  # of several, the first one's maps and level
            std, level, row.estimated = as_image(result.std), as_image(result.noise_level), found

    found = opt.stride is None and shared is not None  # then the stride suits the noise
    row.known = found or all(m.shared_noise or (opt.stride or 1) > 1 or (m.stage == 1 and m.apart > 1) for m in models)

    # how near they come to the clean one
    row.level, row.unit = sample.level, sample.unit
    if sample.clean is not None:
        row.peak = peak_of(sample, source.header.dtype, white_level)
        row.figures = {
            name: measure(sample.clean, image, name != "noisy", row.peak, np.isnan(sample.noisy))
            for name, image in images.items()
        }
        if row.peak:
            row.peak = [float(end) * sample.unit for end in row.peak]
    if models and opt.on_doubt == "keep" and (row.unknown or row.doubts):
        images["kept"] = sample.noisy  # the last one is what is written
    if opt.save:
        save_pictures(opt.save, source, sample, images, std, level, opt.depth)
    if reporter:
        reporter.add(row, sample, images[list(images)[-1]], std)
    return row


def seen_as_one(model, seen: torch.Tensor) -> float:
    """The value of an image (1,C,H,W) that is white to a network trained in white units; 1 where no such is known.

    seen: the image without holes and outliers.
    """
    if model.units == "white" or model.config["units"] == "noise":
        return 1.0
    return float(model.views(seen)[-1].s) / USUAL_NOISE


def peak_of(sample: Sample, dtype: np.dtype, white_level: float | None) -> tuple[float, float] | None:
    """The range that is the peak of PSNR: None for 0..1, else the clean image's: 32 bits, signs and other floats."""
    low, high = float(np.nanmin(sample.clean)), float(np.nanmax(sample.clean))
    usual = dtype in (np.uint8, np.uint16) or (dtype.kind == "f" and low >= 0 and high <= 1)
    return None if white_level or usual or low == high else (low, high)


def as_image(t: torch.Tensor) -> np.ndarray:
    """(1,C,H,W) -> (H,W,C)"""
    return t[0].permute(1, 2, 0).numpy()


def prepare_outputs(opt, inputs: list[Input]) -> None:
    """Creates the folders of --save, --json and --report before any work is done.

    Refuses the folder that the images are in, where outputs could replace inputs.
    """
    if opt.save and opt.save.resolve() in {source.file.resolve().parent for source in inputs}:
        problem = f"--save {opt.save} is the folder of the images themselves"
        raise UsageError(f"{problem}; give another, so that none is overwritten")
    keep_inputs(inputs, {"--json": opt.json, "--report": opt.report})
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


if __name__ == "__main__":
    run_script(main)
