"""Denoises the pictures of a folder, with all that this project can do for them.

    bash scripts/denoise_folder.sh NOISY OUT [CLEAN]

1. The noise of some of the pictures is measured (scripts/inspect_noise.py).
2. The nearest released student is trained on the pictures (train_distill.py --refine). Its own results stand for clean
   pictures, and noise like that of the pictures is added to them. The pictures in CLEAN, if there are any, are used in
   the same way. Where the noise is of the kind that the student knows, nothing would be gained, and it stays as it is.
3. All pictures are denoised, and a report is written (test.py --report).

OUT then has NAME_denoised of each picture, report.html, results.json, noise.json, and the training in training/. Gray
and colour pictures, and files of other types such as 8 and 16 bits, are taken one kind after the other. Where there
are several kinds, each has files of its own, such as report-gray-uint8.html.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import test
import train_distill
from data.files import file_and_page
from data.images import MODES, gray_of, image_header, read_image
from data.inputs import Input, Request, Sample, find_inputs, keep_inputs, read_sample
from data.sets import content_hash, evenly_spaced, find_images
from data.training import far_from_0
from models import load_model, resolve_checkpoint
from models.checks import as_checked, shared_by_neighbours
from models.inference import denoise_batch
from models.inspection import LEAST_PIXELS, telling_part
from models.outliers import filled, outlying
from models.result_checks import Used, check_result
from models.stride import denoise_picture, stride_of
from models.units import units_in_use
from options.folder import FolderOptions
from scripts.inspect_noise import Inspected, print_advice, print_table, record
from utils.advice import Looker
from utils.device import choose_device, choose_dtype
from utils.errors import EXIT_FAILURE, RunError, UsageError, run_script
from utils.files import atomic_write_json, check_writable, counted, shown

STEPS, PATCH, BATCH = 600, 96, 8  # of the training
DIM = 0.5  # pictures of 8 bits that fill less of their range are scaled
TRIED = 5  # pictures that tell whether a student smooths texture
TIMED, TIMED_SIDE = 2, 256  # steps, and side of a picture, that tell how long the work takes


@dataclass
class Kind:
    """The pictures of one kind: gray or colour, in files of one type.

    usable: those that can be read. trainable: those of them that are whole and as large as the training's crops.
    darkest, brightest: the least and the greatest value in them, single pixels aside, in file units.
    """

    mode: str
    dtype: str
    usable: list[Input] = field(default_factory=list)
    trainable: list[Input] = field(default_factory=list)
    darkest: float = math.inf
    brightest: float = -math.inf

    def add(self, source: Input, sample: Sample) -> None:
        self.usable.append(source)
        if np.isfinite(sample.noisy).all() and sample.alpha is None and min(sample.noisy.shape[:2]) >= PATCH:
            self.trainable.append(source)
        seen, _, _ = outlying(filled(torch.from_numpy(sample.noisy.transpose(2, 0, 1).copy())[None]))
        self.darkest = min(self.darkest, float(seen.min()) * sample.white)
        self.brightest = max(self.brightest, float(seen.max()) * sample.white)

    @property
    def offset(self) -> bool:
        """Whether their black is far from 0."""
        return far_from_0(self.darkest, self.brightest)

    @property
    def white_level(self) -> float | None:
        """The value that is to be white in training, where it begins at 0. None for usual pictures of 8 bits."""
        if self.offset:
            return max(self.brightest - self.darkest, 1e-30)
        usual = self.dtype == "uint8" and self.brightest > DIM * 255
        return None if usual else self.brightest


def main(argv: list[str] | None = None) -> int:
    opt = FolderOptions().parse(argv)
    inputs, _ = find_inputs(Request([opt.noisy], skip_bad=True, named="NOISY"), [])
    keep_inputs(inputs, {"OUT": opt.out})
    clean = clean_files(opt.clean_pictures) if opt.clean_pictures else []
    if opt.out.resolve() in {file_and_page(file)[0].resolve().parent for file in clean}:
        raise UsageError(f"OUT {shown(opt.out)} is the folder of the CLEAN pictures; give another")
    try:
        opt.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"OUT: cannot create the folder {opt.out} ({error.strerror}); give another") from error
    check_writable(opt.out)
    try:
        return denoise_kinds(opt, inputs, clean)
    finally:
        with suppress(OSError):
            opt.out.rmdir()  # where nothing came into it


def denoise_kinds(opt, inputs: list[Input], clean: list[Path]) -> int:
    """All steps for all kinds of pictures. What is wrong with one kind does not stop the others. Returns the exit code.

    Raises RunError where no picture can be used.
    """
    kinds, bad = look_through(inputs)
    codes: list[int] = []
    try:
        for kind in kinds:
            try:
                codes.append(denoise_kind(opt, kind, clean, several=len(kinds) > 1))
            except (RunError, UsageError) as error:
                if len(kinds) == 1:
                    raise
                print(f"error: {error}", file=sys.stderr)
                codes.append(error.exit_code)
    finally:
        if bad and (len(kinds) > 1 or not codes):  # else test.py has told of them
            problems = bad.values()
            print(f"{len(bad)} of {len(inputs)} pictures could not be used:", *problems, sep="\n  ", file=sys.stderr)
    return max([*codes, EXIT_FAILURE if bad else 0])


def clean_files(spec: str) -> list[Path]:
    """The clean pictures that can be used; a note names the others. UsageError where there are none.

    They are files of one type, for one value is white in all of them.
    """
    good: dict[str, list[Path]] = {}  # of each type
    bad = []
    for file in find_images(spec, None, "CLEAN"):
        try:
            header = image_header(file)
            if min(header.height, header.width) < PATCH:
                bad.append(f"{file} is {header.width}x{header.height}, smaller than {PATCH}x{PATCH}")
            else:
                read_image(file)  # as the training will: it may be damaged, or transparent
                good.setdefault(header.dtype.name, []).append(file)
        except UsageError as error:
            bad.append(str(error))
    if not good:
        raise UsageError(f"CLEAN {spec}: none of the {len(bad)} pictures can be used; the first: {bad[0]}")
    if len(good) > 1:
        raise UsageError(
            f"CLEAN {spec} has pictures of several types ({', '.join(sorted(good))}), and one value is white in all: "
            "give those of one type"
        )
    if bad:
        print(f"note: {len(bad)} of the pictures in CLEAN are left out; the first: {bad[0]}", file=sys.stderr)
    return next(iter(good.values()))


def look_through(inputs: list[Input]) -> tuple[list[Kind], dict[str, str]]:
    """The kinds of pictures, and what is wrong with those that cannot be read. RunError where none can."""
    kinds: dict[tuple[str, str], Kind] = {}
    bad: dict[str, str] = {}
    converted = 0
    for source in tqdm(inputs, desc="reading", disable=None):
        try:
            if source.problem:
                raise UsageError(source.problem)
            sample = read_sample(source, None, None, None)
            if gray_of(sample.noisy) is not None:
                sample, converted = read_sample(source, "gray", None, None), converted + 1
            key = MODES[sample.noisy.shape[2]], source.header.dtype.name
            kinds.setdefault(key, Kind(*key)).add(source, sample)
        except UsageError as error:
            bad[str(source.path)] = str(error)
    if not kinds:
        raise RunError(f"none of the {len(inputs)} pictures could be used; the first: {next(iter(bad.values()))}")
    if converted:
        print(f"note: files in colour that hold one gray picture: {converted}; their results are gray")
    return list(kinds.values()), bad


def denoise_kind(opt, kind: Kind, clean: list[Path], several: bool) -> int:
    """All steps for one kind of pictures. several: whether there is another kind. Returns test.py's exit code."""
    name = f"-{kind.mode}-{kind.dtype}" if several else ""
    data = [str(one.path) for one in kind.usable] if several else [opt.noisy]
    seen = look_at_noise(opt, kind)
    if seen:
        print_table(seen)
        atomic_write_json(opt.out / f"noise{name}.json", record(seen, {}))
        print_advice(seen)
    else:
        print(
            f"note: none of the {len(kind.usable)} {kind.mode} pictures has noise to measure: they have one value "
            f"everywhere, or fewer than {LEAST_PIXELS} pixels. They are denoised all the same."
        )
    shared = any(one.found.shared for one in seen)
    plain = bool(seen) and not any(one.found.shared or one.found.grows or one.found.falls for one in seen)
    start = "color-photo" if kind.mode == "color" and shared else f"{kind.mode}-{'awgn' if plain else 'hg'}-blind"
    textured = start == "color-photo" and loses_texture(opt, kind, f"{start}-full")
    if textured:
        print(f"\nnote: {start}-full smooths texture of such pictures, so color-hg-blind-full is taken")
        start = "color-hg-blind"
    student, steps = f"{start}-full", opt.steps
    if steps is None:
        steps = 0 if plain or textured or not seen else STEPS
        if plain:
            print(f"\n{student} knows such noise: it denoises the pictures as it is (--steps {STEPS} trains it first)")

    per_pixel = sum(seconds_per_pixel(opt, kind, name) for name in (start, student))
    untrained = len(kind.usable) - len(kind.trainable)
    if steps and untrained:
        print(
            f"note: {untrained} of {len(kind.usable)} pictures cannot be trained on: they are smaller than "
            f"{PATCH}x{PATCH}, or parts of them are NaN or transparent. They are denoised all the same."
        )
    if steps and kind.trainable:
        student = train(opt, kind, clean, start, steps, shared, per_pixel)
    print(f"denoising {counted(kind.usable)} with {student}: {in_words(pixels_of(kind.usable) * per_pixel)}")
    arguments = ["--checkpoint", start, student, "--data", *data, "--mode", kind.mode, "--on-bad", "skip"]
    arguments += ["--save", str(opt.out), "--json", str(opt.out / f"results{name}.json")]
    arguments += ["--report", str(opt.out / f"report{name}.html"), "--checkpoints-dir", str(opt.checkpoints_dir)]
    code = test.main([*arguments, *machine(opt)])
    print(f"results: {opt.out}/NAME_denoised; look at {opt.out / f'report{name}.html'} in a browser")
    return code


def look_at_noise(opt, kind: Kind) -> list[Inspected]:
    """The noise of opt.look_at of the pictures, evenly spaced; of others where these have none to measure."""
    look = Looker.of(opt, choose_device(opt.device, 0, opt.deterministic))
    seen: list[Inspected] = []
    spread = evenly_spaced(len(kind.usable), opt.look_at)
    others = sorted(set(range(len(kind.usable))) - set(spread))
    for n, k in enumerate(tqdm([*spread, *others], desc="looking at the noise", disable=None)):
        if n >= len(spread) and seen:
            break
        source = kind.usable[k]
        sample = read_sample(source, kind.mode, None, None)
        image = sample.noisy * sample.white
        if found := look(image):
            seen.append(Inspected.of(source, image, found))
    return seen


def loses_texture(opt, kind: Kind, name: str) -> bool:
    """Whether a student for photographs removes more than the noise from most of a few of the pictures, by the checks.

    Nothing can be trained then either: what the student makes of the pictures stands for clean ones.
    """
    device = choose_device(opt.device, 0, opt.deterministic)
    model = load_model(name, device, opt.checkpoints_dir)
    model.dtype, model.units = choose_dtype(opt.amp, device), units_in_use(model)
    too_much = []
    for k in evenly_spaced(len(kind.usable), TRIED):
        sample = read_sample(kind.usable[k], kind.mode, None, None)
        y = telling_part(torch.from_numpy(sample.noisy.transpose(2, 0, 1).copy()))[None]
        seen = as_checked(y)
        if shared := shared_by_neighbours(seen[0]):
            result = denoise_picture(model, seen).image
            used = Used(model.stage, model.stride != 1, shared_noise=True, photographs=True)
            checks = check_result(seen[0], result[0], shared=shared, used=used)
            too_much.append(any(check.kind == "amount" and check.failed for check in checks))
    return sum(too_much) > len(too_much) / 2


def train(opt, kind: Kind, clean: list[Path], start: str, steps: int, shared: bool, per_pixel: float) -> str:
    """Trains the released student on the pictures, or goes on with it. Says what it does and for how long.

    Other pictures, or another number of steps, are another training. per_pixel: seconds that stage 1 and the student
    take together. Returns the file of the weights.
    """
    noisy = [str(one.path) for one in kind.trainable]
    weights = [str(resolve_checkpoint(one, opt.checkpoints_dir)) for one in (start, f"{start}-full")]
    arguments = ["--noisy", *noisy, "--refine", "--teacher", weights[0], "--student", weights[1]]
    arguments += ["--steps", str(steps), "--warmup", "50", "--lr", "1e-3", "--pairs-loss", "log"]
    arguments += [
        "--level-jitter",
        "0.3",
        "--level-scale",
        "1.4",
        "--noisy-share",
        "0",
        "--batch-size",
        str(BATCH),
        "--patch-size",
        str(PATCH),
    ]
    if shared:
        arguments += ["--read-noise", "camera"]
    if kind.white_level:
        arguments += ["--white-level", f"{kind.white_level:g}"]
    if kind.offset:
        arguments += ["--units", "noise"]
    if clean:
        arguments += ["--clean", *map(str, clean)]
        if white := white_of_clean(clean, kind):
            arguments += ["--clean-white-level", f"{white:g}"]
    files = {file_and_page(Path(one))[0]: None for one in [*noisy, *clean, *weights]}  # each once, in order
    known = [*arguments, *map(content_hash, files)]
    name = f"{kind.mode}-{hashlib.sha256(repr(known).encode()).hexdigest()[:8]}"
    trained = opt.out / "training" / name / "last.safetensors"
    before = per_pixel * min(pixels_of(kind.trainable), train_distill.REFINED)  # both look at the pictures first
    seconds = before + steps * seconds_per_step(opt, f"{start}-full")
    on = counted(noisy) + (f" and {len(clean)} clean ones" if clean else "")
    print(
        f"\ntraining {start}-full for {steps} steps on {on}: {in_words(seconds)}, less what is done already. It can be "
        f"stopped at any time; the same command goes on. Weights: {trained}"
    )
    arguments += ["--name", name, "--checkpoints-dir", str(opt.out / "training"), "--save-every", "100"]
    if code := train_distill.main([*arguments, *machine(opt)]):
        raise SystemExit(code)
    return str(trained)


def machine(opt) -> list[str]:
    """The flags that say how to compute."""
    return ["--device", opt.device, "--amp", opt.amp, *(["--deterministic"] if opt.deterministic else [])]


def white_of_clean(clean: list[Path], kind: Kind) -> float | None:
    """The value of the clean pictures that is to be white: that of the noisy ones where they are files of one type.

    Floats beyond 0..1 have their own greatest value as white. None: by the type.
    """
    dtype = image_header(clean[0]).dtype
    if kind.white_level and dtype == kind.usable[0].header.dtype:
        return kind.white_level
    if dtype.kind != "f":
        return None
    greatest = max(float(np.nanmax(read_image(file, holes=True, white_level=1.0))) for file in clean)
    return greatest if greatest > 1 else None


def in_words(seconds: float) -> str:
    if seconds > 5400:
        return f"about {seconds / 3600:.1f} hours"
    return f"about {seconds / 60:.0f} minutes" if seconds > 90 else "a minute or two"


def pixels_of(inputs: list[Input]) -> int:
    return sum(one.header.height * one.header.width for one in inputs)


def seconds_per_pixel(opt, kind: Kind, name: str) -> float:
    """How long a model takes here for a pixel of such pictures, measured on the middle of one of them."""
    sample = read_sample(kind.usable[len(kind.usable) // 2], kind.mode, None, None)
    y = torch.from_numpy(np.ascontiguousarray(sample.noisy.transpose(2, 0, 1)))[None]
    top, left = (max(0, (length - TIMED_SIDE) // 2) for length in y.shape[2:])
    y = y[:, :, top : top + TIMED_SIDE, left : left + TIMED_SIDE]
    device = choose_device(opt.device, 0, opt.deterministic)
    model = load_model(name, device, opt.checkpoints_dir)
    model.dtype, model.units = choose_dtype(opt.amp, device), units_in_use(model)
    model.stride = stride_of(model, y)  # it takes as long for larger pictures, so it is not timed
    started = time.perf_counter()
    denoise_batch(model, y)
    return (time.perf_counter() - started) / (y.shape[2] * y.shape[3])


def seconds_per_step(opt, student: str) -> float:
    """How long a step of the training takes here, measured."""
    device = choose_device(opt.device, 0, opt.deterministic)
    model = load_model(student, device, opt.checkpoints_dir).train().requires_grad_(True)
    model.dtype = choose_dtype(opt.amp, device)
    y = torch.rand(BATCH, model.channels, PATCH, PATCH, device=device)
    seconds = []
    for _ in range(1 + TIMED):  # the first one warms up
        started = time.perf_counter()
        model(y).square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 1.15 * min(seconds[1:])  # the optimizer and the crops take their share


if __name__ == "__main__":
    run_script(main)
