"""Denoises the pictures of a folder, with all that this project can do for them.

    bash scripts/denoise_folder.sh NOISY OUT [CLEAN]

1. The noise of some of the pictures is measured (scripts/inspect_noise.py).
2. The nearest released student is trained on the pictures (train_distill.py --refine). Its own results stand for clean
   pictures, and noise like that of the pictures is added to them. The pictures in CLEAN, if there are any, are used in
   the same way.
3. All pictures are denoised, and a report is written (test.py --report).

OUT then has NAME_denoised of each picture, report.html, results.json, noise.json, and the training in training/. Gray
and colour pictures are taken one kind after the other.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import test
import train_distill
from data.images import image_header
from data.inputs import Input, find_inputs, read_sample
from data.sets import find_images
from models import load_model
from models.inference import outlying
from options.folder import FolderOptions
from scripts.inspect_noise import Seen, print_advice, print_table, record
from utils.advice import Looker
from utils.device import choose_device, choose_dtype
from utils.errors import EXIT_FAILURE, RunError, UsageError, run_script
from utils.files import atomic_write_text

PATCH, BATCH = 96, 8  # of the training
DIM = 0.5  # pictures of 8 bits that fill less of their range are scaled
TIMED = 2  # steps that tell how long the training takes


@dataclass(frozen=True)
class Kind:
    """The pictures of one kind, gray or colour.

    usable: those that can be read; brightest: the greatest value in them, single pixels aside, in file units.
    """

    mode: str
    usable: list[Input]
    brightest: float

    @property
    def trainable(self) -> list[Input]:
        return [one for one in self.usable if min(one.header.height, one.header.width) >= PATCH]

    @property
    def white_level(self) -> float | None:
        """The value that is to be white in training: None for usual pictures of 8 bits."""
        usual = all(one.header.dtype == np.uint8 for one in self.usable) and self.brightest > DIM * 255
        return None if usual else self.brightest


def main(argv: list[str] | None = None) -> int:
    opt = FolderOptions().parse(argv)
    inputs, _ = find_inputs(opt, [])
    if opt.out.resolve() in {source.file.resolve().parent for source in inputs}:
        raise UsageError(f"OUT {opt.out} is the folder of the pictures themselves; give another")
    if opt.clean_pictures:
        find_images(opt.clean_pictures, None, "CLEAN")  # wrong ones are told before any work
    try:
        opt.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"OUT: cannot create the folder {opt.out} ({error.strerror})") from error
    kinds, bad = look_through(inputs)
    codes = [denoise_kind(opt, kind, several=len(kinds) > 1, whole=len(kinds) == 1 and not bad) for kind in kinds]
    if bad:
        print(f"{len(bad)} of {len(inputs)} pictures could not be used:", *bad.values(), sep="\n  ", file=sys.stderr)
    return max([*codes, EXIT_FAILURE if bad else 0])


def look_through(inputs: list[Input]) -> tuple[list[Kind], dict[str, str]]:
    """The kinds of pictures, and what is wrong with those that cannot be read. RunError where none can."""
    usable: dict[str, list[Input]] = {"gray": [], "color": []}
    brightest, bad = {"gray": 0.0, "color": 0.0}, {}
    for source in tqdm(inputs, desc="reading", disable=None):
        try:
            if source.problem:
                raise UsageError(source.problem)
            sample = read_sample(source, None, None, None)
            mode = "gray" if sample.noisy.shape[2] == 1 else "color"
            seen, _ = outlying(torch.from_numpy(np.nan_to_num(sample.noisy).transpose(2, 0, 1).copy())[None])
            brightest[mode] = max(brightest[mode], float(seen.max()) * sample.unit)
            usable[mode].append(source)
        except UsageError as error:
            bad[str(source.path)] = str(error)
    kinds = [Kind(mode, sources, brightest[mode]) for mode, sources in usable.items() if sources]
    if not kinds:
        raise RunError(f"none of the {len(inputs)} pictures could be used; the first: {next(iter(bad.values()))}")
    return kinds, bad


def denoise_kind(opt, kind: Kind, several: bool, whole: bool) -> int:
    """All steps for one kind of pictures. whole: whether they are all that NOISY names. Returns test.py's exit code."""
    name = f"-{kind.mode}" if several else ""
    data = [opt.noisy] if whole else [str(one.path) for one in kind.usable]
    seen = look_at_noise(opt, kind)
    if not seen:
        raise RunError(f"all {len(kind.usable)} {kind.mode} pictures have one value everywhere: nothing to denoise")
    print_table(seen)
    atomic_write_text(opt.out / f"noise{name}.json", json.dumps(record(seen, {}), indent=1) + "\n")
    shared = any(one.found.shared for one in seen)
    print_advice(seen, data if len(data) < 4 else [*data[:2], ".."], commands=False)
    start = "color-photo" if kind.mode == "color" and shared else f"{kind.mode}-hg-blind"
    student = f"{start}-full"

    trainable, steps = kind.trainable, opt.steps
    if steps and not trainable:
        print(f"note: no picture has {PATCH} pixels on each side, as training needs: {student} denoises them as it is")
        steps = 0
    if steps:
        noisy = data if len(trainable) == len(kind.usable) else [str(one.path) for one in trainable]
        train(opt, kind, start, noisy, f"student{name}", steps, shared)
        student = str(opt.out / "training" / f"student{name}" / "last.safetensors")
    print(f"denoising {len(kind.usable)} pictures")
    arguments = ["--checkpoint", start, student, "--data", *data, "--mode", kind.mode, "--on-bad", "skip"]
    arguments += ["--save", str(opt.out), "--json", str(opt.out / f"results{name}.json")]
    arguments += ["--report", str(opt.out / f"report{name}.html"), "--device", opt.device, "--amp", opt.amp]
    code = test.main(arguments)
    print(f"results: {opt.out}/NAME_denoised; look at {opt.out / f'report{name}.html'} in a browser")
    return code


def look_at_noise(opt, kind: Kind) -> list[Seen]:
    """The noise of some of the pictures, evenly spaced."""
    look = Looker.of(opt, choose_device(opt.device, 0, opt.deterministic))
    chosen = np.unique(np.linspace(0, len(kind.usable) - 1, min(opt.look_at, len(kind.usable))).round().astype(int))
    seen = []
    for k in tqdm(chosen.tolist(), desc="looking at the noise", disable=None):
        source = kind.usable[k]
        sample = read_sample(source, kind.mode, None, None)
        image = sample.noisy * sample.unit
        if found := look(image):
            seen.append(Seen(source, image.shape[2], float(np.nanmax(image) - np.nanmin(image)), found))
    return seen


def train(opt, kind: Kind, start: str, noisy: list[str], name: str, steps: int, shared: bool) -> None:
    """Trains the released student on the pictures, or goes on with it. Says what it does and for how long."""
    clean = f" and on those in {opt.clean_pictures}" if opt.clean_pictures else ""
    minutes = steps * seconds_per_step(opt, f"{start}-full") / 60
    print(
        f"\ntraining {start}-full for {steps} steps on {len(kind.trainable)} pictures{clean}: about {minutes:.0f} "
        "minutes, less what is done already. It can be stopped at any time; the same command goes on."
    )
    arguments = ["--name", name, "--checkpoints-dir", str(opt.out / "training"), "--noisy", *noisy, "--refine"]
    arguments += ["--teacher", start, "--student", f"{start}-full", "--steps", str(steps), "--warmup", "50"]
    arguments += ["--lr", "1e-3", "--pairs-loss", "log", "--level-jitter", "0.3", "--noisy-share", "0"]
    arguments += ["--batch-size", str(BATCH), "--patch-size", str(PATCH), "--save-every", "100"]
    arguments += ["--device", opt.device, "--amp", opt.amp]
    if shared:
        arguments += ["--read-noise", "camera"]
    if kind.white_level:
        arguments += ["--white-level", f"{kind.white_level:g}"]
    if opt.clean_pictures:
        arguments += ["--clean", opt.clean_pictures]
        files = find_images(opt.clean_pictures, None, "CLEAN")
        if kind.white_level and image_header(files[0]).dtype == kind.usable[0].header.dtype:
            arguments += ["--clean-white-level", f"{kind.white_level:g}"]
    if code := train_distill.main(arguments):
        raise SystemExit(code)


def seconds_per_step(opt, student: str) -> float:
    """How long a step of the training takes here, measured."""
    device = choose_device(opt.device, 0, opt.deterministic)
    model = copy.deepcopy(load_model(student, device, opt.checkpoints_dir)).train().requires_grad_(True)
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
