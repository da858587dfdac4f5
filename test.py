"""Denoises images with checkpoints of either stage and, where clean images are known, measures.

python test.py --checkpoint awgn25 awgn25-full --data bsd68 --noise awgn --sigma 25 --json results.json --save pictures/
python test.py --checkpoint mine-full --data my_pictures/ --save denoised/
python test.py --data bsd68 --noise awgn --sigma 25                   the noisy input alone
python test.py --baseline wavelet nlm bm3d --data bsd68 --noise awgn --sigma 25       classical denoisers, told the true level
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.images import DIM, TIFF_SUFFIXES, brightest, file_and_page, image_header, read_image, to_float, write_image
from data.pictures import as_map, output_names, side_by_side
from data.sets import content_hash, find_images
from data.stacks import images_of, stacks_of, write_stack
from models import load_model
from models.inference import Denoised, automatic_tile, denoise
from models.noise import NOISES, NoiseModel
from options.base import noise_of
from options.test import TestOptions
from utils.baselines import SMALLEST_SIDE, check_baselines, denoise_classically, describe_baseline
from utils.device import choose_device, choose_dtype, device_name
from utils.distributed import World, join
from utils.errors import EXIT_FAILURE, RunError, UsageError, run_script
from utils.files import atomic_write_text
from utils.metrics import measure
from utils.provenance import code_version, training_facts

HOT = 1.5  # a value far above a dim image's white is a hot pixel's, and would spread over all that a network sees around it
METHODS = {1: ("mu", "posterior"), 2: ("distilled",)}  # what a checkpoint of each stage gives


@dataclass(frozen=True)
class Sample:
    """One image of a test: noisy and clean, (H,W,C) float32, 0..1; clean and the true level (0..255 units) are None where unknown.

    white_level: the file value that is 1.0; None: 255, 65535, or 1.0 in float files.
    """

    noisy: np.ndarray
    clean: np.ndarray | None = None
    level: float | None = None
    white_level: float | None = None


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
    files = find_images(opt.data, opt.data_root, "--data")
    references = matching(files, find_images(opt.clean, opt.data_root, "--clean")) if opt.clean else [None] * len(files)
    channels = agreed_channels(opt, models)
    white_level = opt.white_level or (None if opt.protocol == "published" else agreed_white_level(models))
    bad: dict[Path, str] = {}  # file -> what is wrong with it
    for file in files:
        with noting(bad, file, opt.on_bad):
            check_file(file, opt, models, channels, white_level)
    noise = noise_of(opt) if opt.noise else None
    with world.main_first():
        prepare_outputs(opt, files)
    names = output_names(files)
    shown = [f.name for f in files] if len({f.name for f in files}) == len(files) else [str(f) for f in files]

    rows, seconds, tiled = {}, {}, set()
    dim, unknown = {}, {}  # images that need a word: name -> what is said of their brightness, and of noise that a checkpoint was not trained on
    share = range(world.rank, len(files), world.size)
    for k in tqdm(share, desc="images", disable=None if world.main else True):
        file, reference, name = files[k], references[k], names[k]
        with noting(bad, file, opt.on_bad):
            sample = read_sample(file, reference, opt.mode, white_level, noise)
        if file in bad:
            continue
        if sample.white_level != white_level:
            dim[name] = f"{name}: {sample.white_level:.6g}"
        y = torch.from_numpy(np.ascontiguousarray(sample.noisy.transpose(2, 0, 1)))[None]  # 1,C,H,W
        images, first = {"noisy": sample.noisy}, None
        for baseline in opt.baseline:
            started = time.perf_counter()
            images[baseline] = denoise_classically(baseline, sample.noisy, sample.level / 255)
            seconds[baseline] = seconds.get(baseline, 0.0) + time.perf_counter() - started
        for model in models:
            started = time.perf_counter()
            result = denoise(model, y, opt.tile, opt.self_ensemble, progress=True)
            seconds[str(model.file)] = seconds.get(str(model.file), 0.0) + time.perf_counter() - started
            if max(y.shape[2:]) > (opt.tile or automatic_tile(model, y)):
                tiled.add(str(model.file))
            images |= {method_name(method, model, models): as_image(t) for method, t in outputs_of(result, model).items()}
            if model.stage == 1:
                first = first or result
                if words := noise_not_trained_on(model, result):
                    unknown[name] = f"{name}: {words}"
        estimated = None if first is None else 255 * level_of(first)
        row = {"name": shown[k], "noise_level": {"true": sample.level, "estimated": estimated}}
        if sample.clean is not None:
            row |= {method: measure(sample.clean, image, clamp=method != "noisy") for method, image in images.items()}
        rows[k] = row
        if opt.save:
            save_pictures(opt.save, name, file, images, sample, first)

    # from here on process 0 speaks for all
    seconds = {name: total / len(rows) for name, total in seconds.items()}
    for others in world.gather((rows, bad, tiled, dim, unknown)):
        rows, bad, tiled, dim, unknown = (mine | other for mine, other in zip((rows, bad, tiled, dim, unknown), others))
    if not world.main:
        return 0
    rows, bad = [rows[k] for k in sorted(rows)], {file: bad[file] for file in files if file in bad}
    if not rows:
        raise RunError(f"none of the {len(files)} images could be used; the first: {next(iter(bad.values()))}")
    table = {
        "arguments": list(argv),
        "protocol": opt.protocol,
        "noise": noise_record(opt),
        "data": [str(d) for d in opt.data],
        "clean": [str(d) for d in opt.clean or []],
        "mode": opt.mode,
        "checkpoints": [str(m.file) for m in models],
        "models": [model_record(m, models) | {"tiled": str(m.file) in tiled} for m in models],
        "baselines": {name: describe_baseline(name) for name in opt.baseline},
        "self_ensemble": opt.self_ensemble,
        "code": code,
        "torch": str(torch.__version__),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "seconds_per_image": seconds,
        "mean": means(rows),
        "skipped": {str(file): text for file, text in bad.items()},
        "images": rows,
    }
    if opt.save and models:
        put_stacks_together(opt.save, [file for file in files if file not in bad], dict(zip(files, names)))
    print_table(table)
    note("dim images, whose brightest value was taken for white (--white-level says another)", dim)
    note("results that may be worse than the images, for their noise", unknown)
    if opt.json:
        atomic_write_text(opt.json, json.dumps(table, indent=1) + "\n")
    if bad:
        print(f"{len(bad)} of {len(files)} images were skipped:", *bad.values(), sep="\n  ", file=sys.stderr)
    return EXIT_FAILURE if bad else 0


@contextmanager
def noting(bad: dict[Path, str], file: Path, on_bad: str) -> Iterator[None]:
    """With --on-bad skip, what is wrong with a file is noted instead of ending the test."""
    try:
        yield
    except UsageError as error:
        if on_bad == "stop":
            raise
        bad[file] = str(error)


def noise_record(opt) -> dict | None:
    """The noise of --protocol published: the model, and its levels in 0..255 units."""
    if opt.noise is None:
        return None
    values = {level.name: getattr(opt, level.name) for level in NOISES[opt.noise].levels}
    return {"model": opt.noise} | {name: value[0] if isinstance(value, tuple) else value for name, value in values.items()}


def model_record(model, models: list) -> dict:
    """What identifies a checkpoint, how it was trained, and by which names its results stand in the table."""
    return {
        "file": str(model.file),
        "sha256": content_hash(model.file),
        "stage": model.stage,
        "config": model.config,
        "precision": str(model.dtype).removeprefix("torch."),
        "step": model.values["step"],
        "training": training_facts(model.values),
        "methods": {method: method_name(method, model, models) for method in METHODS[model.stage]},
    }


def outputs_of(result: Denoised, model) -> dict[str, torch.Tensor]:
    return dict(zip(METHODS[model.stage], (result.mu, result.image) if model.stage == 1 else (result.image,)))


def method_name(method: str, model, models: list) -> str:
    """mu, posterior or distilled; followed by the checkpoint, as it was given, where several of its stage are tested."""
    alone = sum(m.stage == model.stage for m in models) == 1
    return method if alone else f"{method} {model.name}"


def as_image(t: torch.Tensor) -> np.ndarray:
    """(1,C,H,W) -> (H,W,C)"""
    return t[0].permute(1, 2, 0).numpy()


def agreed_channels(opt, models: list) -> int | None:
    """1, 3 or None (as stored). UsageError where checkpoints, --mode and --noise do not go together."""
    wanted = {model.channels for model in models}
    given = {"gray": 1, "color": 3}.get(opt.mode)
    if opt.noise and NOISES[opt.noise].needs_color and given == 1:
        raise UsageError(f"--noise {opt.noise} describes correlated colour channels and makes no sense with --mode gray")
    if len(wanted) > 1:
        raise UsageError("--checkpoint: gray and colour checkpoints together; test them one after the other")
    channels = wanted.pop() if wanted else given
    if given and channels != given:
        raise UsageError(f"--mode {opt.mode}: {models[0].file} takes {channels} channel{'s' * (channels > 1)}, so leave --mode out or use another checkpoint")
    return channels


def check_file(file: Path, opt, models: list, channels: int | None, white_level: float | None) -> None:
    """UsageError where the file's header cannot be read, or it does not fit the checkpoints and --mode does not say to convert, or the baselines."""
    header = image_header(file)
    if header.dtype == np.uint8 and white_level and white_level > 255 and not opt.white_level:
        raise UsageError(
            f"{file} has 8 bits, {models[0].file} was trained on files in which {white_level:g} is white: say with --white-level what is white here"
        )
    found = header.channels
    if opt.baseline and min(header.height, header.width) < SMALLEST_SIDE:
        size = f"{header.width}x{header.height}"
        raise UsageError(f"--baseline {opt.baseline[0]}: {file} is {size}; images of {SMALLEST_SIDE}x{SMALLEST_SIDE} or more are needed")
    if opt.noise and NOISES[opt.noise].needs_color and (channels or found) != 3:
        raise UsageError(f"--noise {opt.noise} describes correlated colour channels, but {file} is gray: give colour images")
    if not opt.mode and channels and found != channels:
        kind = {1: "gray", 3: "color"}
        raise UsageError(
            f"{file} has {found} channels, {models[0].file} takes {channels}: pass --mode {kind[channels]} to convert, or use a {kind[found]} checkpoint"
        )


def agreed_white_level(models: list) -> float | None:
    levels = {model.values["white_level"] for model in models} or {None}
    if len(levels) > 1:
        raise UsageError(f"--checkpoint: trained with different white levels ({', '.join(str(v) for v in levels)}); say which with --white-level")
    return levels.pop()


def matching(files: list[Path], references: list[Path]) -> list[Path]:
    """The clean image of each noisy one: by equal stems where all have one of their own, else in order."""
    by_stem = {f.stem: f for f in references}
    unique = len(by_stem) == len(references) and len({f.stem for f in files}) == len(files)
    if unique and all(f.stem in by_stem for f in files):
        return [by_stem[f.stem] for f in files]
    if len(files) != len(references):
        raise UsageError(
            f"--clean names {len(references)} images, --data {len(files)}: give one clean image for each, with the same names or in the same order"
        )
    return references


def read_sample(file: Path, reference: Path | None, mode: str | None, white_level: float | None, noise: NoiseModel | None) -> Sample:
    """Raises UsageError as read_image does. Noisy images that fill a small part of their file's range are brought to 0..1 by their own brightest value where
    no white level is known: noise levels are relative to white, and the networks know those of their training alone."""
    image = read_image(file, mode=mode, white_level=white_level)
    if white_level is None and noise is None and image.dtype != np.uint8 and 0 < (white := brightest(image)) < DIM:
        image = np.minimum(image / white, HOT)
        white_level = white * (65535 if image_header(file).dtype == np.uint16 else 1)
    image = to_float(image)
    if noise:
        x = image.transpose(2, 0, 1).astype(np.float64)
        return Sample(noise.published(x).transpose(1, 2, 0).astype(np.float32), image, 255 * noise.rms(x), white_level)
    clean = to_float(read_image(reference, mode=mode, white_level=white_level)) if reference else None
    if clean is not None and clean.shape != image.shape:
        raise UsageError(f"--clean {reference} is {clean.shape}, {file} {image.shape} (rows, columns, channels): they must show the same picture")
    return Sample(image, clean, white_level=white_level)


def level_of(result: Denoised) -> float:
    """Root mean square over the image of the noise level that stage 1 found, 0..1 units."""
    return result.noise_level.square().mean().sqrt().item()


def note(what: str, images: dict[str, str]) -> None:
    """Tells what is to be known of some images, of the first ones by name."""
    if images:
        more = [f"and {len(images) - 5} more"] if len(images) > 5 else []
        print(f"note: {what}:", *[*images.values()][:5], *more, sep="\n  ", file=sys.stderr)


def noise_not_trained_on(model, result: Denoised) -> str | None:
    """What is to be said where the noise that a stage-1 model finds lies outside of the levels it was trained on, as far as they are known. Not for mg, which
    has no one level."""
    facts = training_facts(model.values) or {}
    kind = NOISES[model.noise]
    if not all(facts.get(level.name) for level in kind.levels if not level.whole) or not (trained := kind.trained_range(facts)):
        return None
    low, high = trained
    level = 255 * level_of(result)
    if 0.8 * low <= level <= 1.25 * high:  # what an estimate may be off
        return None
    remedy = "; a --white-level nearer to the brightest value raises it" if level < low else ""
    trained = f"{low:g} to {high:g}" if low < high else f"{low:g}"
    return f"noise of {level:.2g}, {model.name} was trained on {trained} (of 255, white){remedy}"


def means(rows: list[dict]) -> dict[str, dict[str, float | None]]:
    """Mean over images of every figure of every method; None where no image has it."""
    result = {}
    for method in [m for m in rows[0] if m not in ("name", "noise_level")]:
        result[method] = {}
        for figure in rows[0][method]:
            found = [row[method][figure] for row in rows if row[method][figure] is not None]
            result[method][figure] = float(np.mean(found)) if found else None
    return result


def print_table(table: dict) -> None:
    """Per image and in the mean: PSNR in dB (float / after rounding to 8 bits) and SSIM of each method, and noise levels in 0..255 units."""
    methods = list(table["mean"])
    width = max([len(row["name"]) for row in table["images"]] + [5])
    show = lambda v, digits: "-" if v is None else f"{v:.{digits}f}"  # noqa: E731
    cell = lambda f: f"{show(f['psnr'], 2)} / {show(f['psnr_uint8'], 2)}  {show(f['ssim'], 4)}"  # noqa: E731
    columns = [max(len(m), 22) for m in methods]
    if methods:
        print("PSNR in dB (float / rounded to 8 bits), SSIM")
    print("  ".join([f"{'image':{width}}", *(f"{m:>{c}}" for m, c in zip(methods, columns)), "level: true  estimated"]))
    for row in table["images"]:
        level = row["noise_level"]
        cells = [f"{cell(row[m]):>{c}}" for m, c in zip(methods, columns)]
        print("  ".join([f"{row['name']:{width}}", *cells, f"{show(level['true'], 2):>11}  {show(level['estimated'], 2):>9}"]))
    if methods:
        print("  ".join([f"{'mean':{width}}", *(f"{cell(table['mean'][m]):>{c}}" for m, c in zip(methods, columns))]))
    if table["baselines"]:
        print(f"{', '.join(table['baselines'])}: told the true level of each image, which the networks are not")
    errors = [abs(level["estimated"] / level["true"] - 1) for row in table["images"] if (level := row["noise_level"])["estimated"] and level["true"]]
    if errors:
        print(f"estimated levels: mean error {np.mean(errors):.1%}, within 5% on {sum(e <= 0.05 for e in errors)} of {len(errors)} images")
    for name, value in table["seconds_per_image"].items():
        print(f"{name}: {value:.2f} seconds per image")


def prepare_outputs(opt, files: list[Path]) -> None:
    """Creates the folders of --save and --json before any work is done; refuses the folder that the images are in, where outputs could replace inputs."""
    if opt.save and opt.save.resolve() in {file_and_page(f)[0].resolve().parent for f in files}:
        raise UsageError(f"--save {opt.save} is the folder of the images themselves; give another, so that none is overwritten")
    for flag, folder in (("--save", opt.save), ("--json", opt.json and opt.json.parent)):
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{flag}: cannot create the folder {folder} ({error.strerror})") from error


def save_pictures(folder: Path, name: str, file: Path, images: dict[str, np.ndarray], sample: Sample, first: Denoised | None) -> None:
    """NAME_denoised: the last checkpoint's result alone, with the input's format, depth and units; NAME_all.png: everything side by side; NAME_std.png: the
    posterior's standard deviation, white at 25; NAME_level.png: the estimated noise level, white at 100 (0..255 units). Of a page of a stack
    the result alone."""
    page = file_and_page(file)[1]
    if len(images) > 1:
        dtype = image_header(file).dtype
        tiff = file.suffix.lower() in TIFF_SUFFIXES
        bits = {"uint8": 8, "uint16": 16}.get(dtype.name, 32)
        units = sample.white_level / {8: 255, 16: 65535, 32: 1}[bits] if sample.white_level else 1.0
        target = folder / f"{name}_denoised{file.suffix.lower() if tiff else '.png'}"
        write_image(target, list(images.values())[-1] * units, bits=bits, like=file if tiff and not page else None)
    if page:
        return
    write_image(folder / f"{name}_all.png", side_by_side(images | ({"clean": sample.clean} if sample.clean is not None else {})))
    if first is not None:
        write_image(folder / f"{name}_std.png", as_map(as_image(first.std), 25 / 255))
        level = as_image(first.noise_level)
        write_image(folder / f"{name}_level.png", as_map(np.broadcast_to(level, (*sample.noisy.shape[:2], 1)), 100 / 255))


def put_stacks_together(folder: Path, files: list[Path], names: dict[Path, str]) -> None:
    """NAME_denoised.tif of each stack whose pages were all denoised, in place of theirs."""
    for stack, pages in stacks_of(files).items():
        if pages != images_of(stack):
            print(f"note: {stack}: the results stay in single pages, since not all of its pages were denoised", file=sys.stderr)
            continue
        results = [folder / f"{names[page]}_denoised.tif" for page in pages]
        name = names[pages[0]].rpartition("_page")[0]
        name += "_stack" * (name in names.values())
        write_stack(folder / f"{name}_denoised.tif", results, like=stack)
        for result in results:
            result.unlink()


if __name__ == "__main__":
    run_script(main)
