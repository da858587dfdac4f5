"""Denoises the blocks of the benchmarks SIDD and DND, measures them or writes their submissions.

    python scripts/sidd_dnd.py sidd-validation --checkpoint color-photo-full --noisy N.mat --clean C.mat --json r.json
    python scripts/sidd_dnd.py sidd-benchmark --checkpoint color-photo-full --noisy N.mat --out sidd/
    python scripts/sidd_dnd.py dnd --checkpoint color-photo-full --data dnd_2017/ --out dnd/

Every block is denoised by itself, as test.py denoises a picture. With --out the same command goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from argparse import Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules, from wherever this is run

from data.sidd_dnd import (
    Block,
    bundle_dnd,
    crop_file,
    read_block,
    read_blocks,
    read_boxes,
    read_crop,
    write_block,
    write_mat,
    write_sidd_csv,
    write_sidd_mat,
)
from models import load_model
from models.inference import denoise_batch
from models.phases import weights_of
from models.stride import stride_of
from models.units import units_in_use
from options.base import Parser
from options.sidd_dnd import BenchmarkOptions, DndOptions, ValidationOptions
from utils.device import choose_device, choose_dtype, device_name
from utils.errors import RunError, UsageError, run_script
from utils.files import atomic_write_json, shown
from utils.metrics import measure
from utils.provenance import code_version
from utils.report import METHODS, means, model_record, number

SIDD, DND = (40, 32), (50, 20)  # pictures, and blocks of each


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="scripts/sidd_dnd.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    names = f"{{{','.join(COMMANDS)}}}"
    parser.add_argument("command", metavar=names, choices=tuple(COMMANDS), help="--help after it lists its flags")
    options, command = COMMANDS[parser.parse_args(argv[:1]).command]
    return command(options().parse(argv[1:]), argv)


def sidd_validation(opt: Namespace, argv: list[str]) -> int:
    code = code_version()  # now: files may be edited while this works
    noisy = read_blocks(opt.noisy, "ValidationNoisyBlocksSrgb", "--noisy")  # P,B,H,W,3
    clean = read_blocks(opt.clean, "ValidationGtBlocksSrgb", "--clean")
    if noisy.shape != clean.shape:
        shapes = f"--clean {shown(opt.clean)} is {clean.shape}, --noisy {shown(opt.noisy)} {noisy.shape}"
        raise UsageError(f"{shapes}: give the two files of one download")
    model = model_for(opt)
    if opt.json:
        make_folder(opt.json.parent, "--json")
    begin(opt, model, opt.noisy)
    pictures = denoise_blocks(model, noisy, opt)

    method = METHODS[model.stage][-1]
    rows = []
    for k, block in enumerate(block for blocks in pictures for block in blocks):
        picture, place = divmod(k, noisy.shape[1])
        truth = clean[picture, place]
        figures = {"noisy": compare(truth, noisy[picture, place]), method: compare(truth, block.pixels)}
        rows.append(
            {"picture": picture + 1, "block": place + 1, "strides": block.strides, "seconds": block.seconds, **figures}
        )
    mean = means([{name: row[name] for name in ("noisy", method)} for row in rows])
    print(f"PSNR in dB after rounding to 8 bits, SSIM: means of {len(rows)} blocks")
    for name, figures in mean.items():
        print(f"{name:{len(method)}}  {number(figures['psnr'], 2)}  {number(figures['ssim'], 4)}")
    tell_incomplete(opt.noisy, noisy.shape[:2], SIDD)
    if opt.json:
        record = {
            "benchmark": "sidd-validation",
            "arguments": argv,
            "models": [model_record(model, [model])],
            "self_ensemble": opt.self_ensemble,
            "code": code,
            "torch": str(torch.__version__),
            "device": device_name(next(model.parameters()).device),
            "threads": torch.get_num_threads(),
            "seconds_per_block": float(np.mean([row["seconds"] for row in rows])),
            "blocks_of_strides": dict(Counter(" and ".join(map(str, sorted(row["strides"]))) for row in rows)),
            "mean": mean,
            "blocks": rows,
        }
        atomic_write_json(opt.json, record)
    return 0


def sidd_benchmark(opt: Namespace, argv: list[str]) -> int:
    noisy = read_blocks(opt.noisy, "BenchmarkNoisyBlocksSrgb", "--noisy")  # P,B,H,W,3
    model = model_for(opt)
    begin(opt, model, opt.noisy)
    pictures = denoise_blocks(model, noisy, opt)
    write_sidd_csv(opt.out / "SubmitSrgb.csv", (block.pixels for blocks in pictures for block in blocks))
    about = {
        "MethodName": opt.method_name,
        "Authors": opt.authors or "",
        "PaperTitle": opt.paper_title,
        "Venue": opt.venue,
    }
    write_sidd_mat(opt.out / "SubmitSrgb.mat", pictures, about)
    print(f"{noisy.shape[0] * noisy.shape[1]} blocks: {opt.out / 'SubmitSrgb.csv'}, {opt.out / 'SubmitSrgb.mat'}")
    tell_incomplete(opt.noisy, noisy.shape[:2], SIDD)
    return 0


def dnd(opt: Namespace, argv: list[str]) -> int:
    pictures = read_boxes(opt.data)
    files = [opt.data / "images_srgb" / f"{k + 1:04d}.mat" for k in range(len(pictures))]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(f"--data {shown(opt.data)} has no {shown(missing[0])}: give the whole of DND")
    model = model_for(opt)
    begin(opt, model, opt.data / "info.mat")
    make_folder(opt.out / "bundled", "--out")
    progress = tqdm(total=sum(map(len, pictures)), desc="boxes", disable=None)
    for picture, (file, boxes) in enumerate(zip(files, pictures)):
        for place, box in enumerate(boxes):
            target = crop_file(opt.out, picture, place)
            if not target.is_file():
                write_mat(target, {"Idenoised_crop": denoise(model, read_crop(file, box), opt)})
            progress.update()
        bundle_dnd(opt.out, picture, len(boxes))
    progress.close()
    print(f"{sum(map(len, pictures))} boxes: submit the {len(pictures)} files of {opt.out / 'bundled'}")
    shape = len(pictures), min(map(len, pictures))
    tell_incomplete(opt.data / "info.mat", shape, DND)
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Namespace, list[str]], int]]] = {
    "sidd-validation": (ValidationOptions, sidd_validation),
    "sidd-benchmark": (BenchmarkOptions, sidd_benchmark),
    "dnd": (DndOptions, dnd),
}


def model_for(opt: Namespace):
    """The model of --checkpoint, ready for colour pictures of any brightness."""
    device = choose_device(opt.device, deterministic=opt.deterministic)
    model = load_model(opt.checkpoint, device, opt.checkpoints_dir)
    if model.channels != 3:
        raise UsageError(
            f"--checkpoint {shown(opt.checkpoint)} takes gray pictures, and these are in colour: give one for colour, "
            "such as color-photo-full"
        )
    model.dtype = choose_dtype(opt.amp, device)
    model.units = units_in_use(model)
    return model


def denoise(model, block: np.ndarray, opt: Namespace) -> np.ndarray:
    """A block (H,W,3), float32, 0..1, as test.py denoises a picture. Gives the same kind, cut to 0..1.

    The model keeps the stride, or strides, that were taken.
    """
    y = torch.from_numpy(np.ascontiguousarray(block.transpose(2, 0, 1)))[None]  # 1,3,H,W
    model.stride = opt.stride or stride_of(model, y)
    result = denoise_batch(model, y, opt.tile, opt.self_ensemble)
    return result.image[0].permute(1, 2, 0).clamp(0, 1).numpy()


def denoise_blocks(model, noisy: np.ndarray, opt: Namespace) -> list[list[Block]]:
    """The blocks of SIDD (P,B,H,W,3), uint8, denoised; those that are in --out already are read from there."""
    folder = opt.out and opt.out / "blocks"
    if folder:
        make_folder(folder, "--out")
    pictures: list[list[Block]] = []
    for k in tqdm(range(noisy.shape[0] * noisy.shape[1]), desc="blocks", disable=None):
        picture, place = divmod(k, noisy.shape[1])
        if place == 0:
            pictures.append([])
        file = folder and folder / f"{picture + 1:04d}_{place + 1:02d}.npz"
        if file and file.is_file():
            pictures[picture].append(read_block(file))
            continue
        started = time.perf_counter()
        image = denoise(model, noisy[picture, place] / np.float32(255), opt)
        block = Block(np.rint(255 * image).astype(np.uint8), time.perf_counter() - started, weights_of(model.stride))
        if file:
            write_block(file, block)
        pictures[picture].append(block)
    return pictures


def compare(clean: np.ndarray, image: np.ndarray) -> dict[str, float | None]:
    """psnr in dB and ssim of two uint8 blocks (H,W,3)."""
    figures = measure(clean / 255, image / 255)
    return {"psnr": figures["psnr_uint8"], "ssim": figures["ssim"]}


def begin(opt: Namespace, model, file: Path) -> None:
    """Makes the folder --out, if one is given, that of this model, these settings and this file alone.

    settings.json in it says which they are. Raises UsageError where the folder is that of others.
    """
    if not opt.out:
        return
    make_folder(opt.out, "--out")
    settings = {
        "file": hashlib.sha256(file.read_bytes()).hexdigest(),
        "checkpoint": hashlib.sha256(model.file.read_bytes()).hexdigest(),
        "stride": opt.stride or "mixed",
        "self_ensemble": opt.self_ensemble,
        "precision": str(model.dtype).removeprefix("torch."),
    }
    record = opt.out / "settings.json"
    if not record.exists():
        if any(not path.name.startswith(".") for path in opt.out.iterdir()):
            raise UsageError(f"--out {shown(opt.out)} holds other files: give a folder that is new or empty")
        atomic_write_json(record, settings)
        return
    try:
        before = json.loads(record.read_text())
        different = [name for name in settings if before.get(name) != settings[name]]
    except (OSError, ValueError, AttributeError):
        raise UsageError(f"--out {shown(opt.out)}: settings.json cannot be read: give another folder") from None
    if different:
        raise UsageError(
            f"--out {shown(opt.out)} holds results of another {' and '.join(different)}: give another folder, or "
            "remove this one"
        )


def make_folder(folder: Path, flag: str) -> None:
    """Raises RunError where it cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{flag}: cannot create the folder {shown(folder)} ({error.strerror})") from error


def tell_incomplete(file: Path, found: tuple[int, int], whole: tuple[int, int]) -> None:
    """Says where a file does not hold the whole benchmark: pictures, and blocks of each."""
    if tuple(found) != whole:
        has = f"{found[0]} pictures of {found[1]} blocks, the benchmark {whole[0]} of {whole[1]}"
        print(f"note: {shown(file)} has {has}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
