"""Stage 2: a frozen stage-1 model teaches MWCNN.

    python train_distill.py --name awgn25-full --teacher awgn25 --clean bsd432 --synthetic-noisy bsd432 --noise awgn --sigma 25
    python train_distill.py --name mine-full --teacher mine --clean bsd432 --noisy my_pictures/

The student sees two kinds of crops in a batch: clean ones x, made noisy with the noise model that the teacher has learned, whose target is x; and noisy
ones y, whose target is the teacher's posterior mean. Clean and noisy images share no picture: images named as both are split, half each.
"""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.crops import DiskPool, ImagePool
from data.sets import find_images
from data.source import crop_source
from data.training import (
    LEVEL,
    NOISE,
    NOISY,
    SYNTHESIS,
    VALIDATION,
    WEIGHTS,
    Images,
    add_noise_once,
    digest,
    disjoint,
    in_memory,
    look_at,
    note_conversion,
    warn_of_test_images,
)
from models import MWCNN, BlindSpotDenoiser, load_model, posterior_mean, synthesise
from models.inference import denoise
from models.noise import NOISES, NoiseModel
from options.base import noise_of
from options.stage2 import Stage2Options
from utils.checkpoint import checksum
from utils.device import choose_device, choose_dtype, denormals_as_zero, device_name, keep_freed_memory
from utils.distributed import World, join
from utils.errors import EXIT_RESUME, RunError, UsageError, run_script
from utils.logging import Board
from utils.optim import make_optimizer
from utils.run import FollowedRun, RunFolder, StopRequest
from utils.random import generator, generators, hashed, normal, uniform
from utils.schedule import learning_rate, update_average
from utils.training import COMPILE_MODES, plain_options, restore, training_tensors

MAX_LEVELS = 256
MAX_SKIPPED = 10  # steps whose loss or gradient was not finite, under --on-nonfinite skip


def main(argv: list[str] | None = None) -> int:
    options = Stage2Options()
    opt = options.parse(argv)
    with denormals_as_zero(), join(opt.device) as world:
        return train(opt, options, world)


def train(opt, options: Stage2Options, world: World) -> int:
    started = time.monotonic()
    device = choose_device(opt.device, world.local_rank, opt.deterministic)
    dtype = choose_dtype(opt.amp, device)
    keep_freed_memory()

    teacher = load_model(opt.teacher, device, opt.checkpoints_dir)
    if teacher.stage != 1:
        raise UsageError(f"--teacher {teacher.file} is a stage-2 checkpoint (MWCNN); the teacher is a stage-1 one, made by train_dbsn.py")
    teacher.dtype = dtype
    mode = {1: "gray", 3: "color"}[teacher.channels]
    if opt.noise and NOISES[opt.noise].needs_color and teacher.channels == 1:
        raise UsageError(f"--noise {opt.noise} describes correlated colour channels; the teacher {teacher.file} is a gray one")
    white_level = opt.white_level or teacher.values["white_level"]

    clean_files = find_images(opt.clean, opt.data_root, "--clean")
    flag = "--noisy" if opt.noisy else "--synthetic-noisy"
    noisy_files = find_images(opt.noisy or opt.synthetic_noisy, opt.data_root, flag)
    warn_of_test_images([*opt.clean, *(opt.noisy or opt.synthetic_noisy)], [*clean_files, *noisy_files])
    clean_files, noisy_files = disjoint(clean_files, noisy_files, opt.seed, flag)
    val = (
        look_at(find_images(opt.val, opt.data_root, "--val"), mode, opt.clean_white_level, what="--val images", white_flag="--clean-white-level").decode()
        if opt.val
        else None
    )
    clean = look_at(clean_files, mode, opt.clean_white_level, opt.patch_size, "--clean images", "--clean-white-level")
    if opt.noisy:
        noisy = look_at(noisy_files, mode, white_level, opt.patch_size, "--noisy images")
        note_conversion(noisy)
    else:
        noisy = look_at(noisy_files, mode, opt.clean_white_level, opt.patch_size, "--synthetic-noisy images", "--clean-white-level")
    noise = noise_of(opt) if opt.synthetic_noisy else None
    redraw = noise is not None and opt.noise_draw == "fresh"
    before = RunFolder(opt.checkpoints_dir / opt.name).recorded_options() or {"images": "auto"}
    if opt.images == "auto":  # it decides what the targets are, see below: a run keeps what it began with
        opt.images = before.get("images", "memory")
    # float copies: the images with their noise, and the targets
    if in_memory(opt.images, clean.memory() + noisy.memory(float_copies=0 if redraw else 2 if noise else 1), device, world):
        opt.images, clean, noisy = "memory", clean.decode(), noisy.decode()
    else:
        opt.images = "disk"
    clean_pool, noisy_pool = clean.pool(device), noisy.pool(device)
    if noise and not redraw:
        noisy_pool = add_noise_once(noisy_pool, noise, opt.seed)

    student = starting_student(opt, teacher.channels)
    student.to(device, memory_format=torch.channels_last)
    student.dtype = dtype
    average = copy.deepcopy(student).requires_grad_(False)
    if opt.compile != "off":
        student.compile(mode=COMPILE_MODES[opt.compile])  # in place: names of weights stay
    optimizer = make_optimizer(opt.optimizer, student.parameters(), opt.lr)

    noisy_count = round(opt.noisy_share * opt.batch_size)
    clean_count = opt.batch_size - noisy_count
    world.check_share(noisy_count, "noisy part of the batch,")
    world.check_share(clean_count, "clean part of the batch,")

    clean_source = crop_source(clean_pool, opt.patch_size, opt.seed, clean_count, world.local_size)
    noisy_source = crop_source(noisy_pool, opt.patch_size, opt.seed + NOISY, noisy_count, world.local_size)
    folder = RunFolder if world.main else FollowedRun
    with folder(opt.checkpoints_dir / opt.name) as run, StopRequest() as stop, clean_source, noisy_source:
        recorded = {**vars(opt), "student_width": student.config["width"], "amp": str(dtype).removeprefix("torch.")}
        recorded |= {"clean_images": digest(clean, before.get("clean_images")), "noisy_images": digest(noisy, before.get("noisy_images"))}
        recorded["teacher_weights"] = checksum({k: v.cpu() for k, v in teacher.state_dict().items()}, {})
        step, skipped = 0, 0
        with world.main_first():
            digests = frozenset({"clean_images", "noisy_images", "teacher_weights"})
            run.check_options(plain_options(recorded), options.may_change, plain_options(options.defaults() | {"images": "memory"}), digests)
            if state := run.load_state():
                step, skipped = state.values["step"], state.values["skipped"]
                restore(student, average, optimizer, state.tensors)
            run.truncate_stats(step)
        if world.main:
            tqdm.write(f"{opt.name}: on {device_name(device)}, in {recorded['amp']}" + (f", continuing after step {step} of {opt.steps}" if step else ""))

        values = {"config": student.config, "white_level": white_level, "options": plain_options(recorded)}

        def save() -> None:
            run.save_state(step, training_tensors(student, average, optimizer), {"step": step, "skipped": skipped})
            run.save_weights("last", "stage2", average.state_dict(), {**values, "step": step})

        targets, levels = None, None
        if noisy_count and not redraw and opt.images == "memory" and step < opt.steps:
            # The teacher is frozen and the noisy images stay as they are: each is denoised once, whole, and never again. From disk that would need a whole
            # image for every crop: as with fresh noise, the crop is denoised, which lacks the surroundings at its borders.
            targets, levels = posterior_means(teacher, noisy_pool)
        if teacher.noise_estimator.learned:
            levels = None  # it finds the level of a clean image as it does that of a noisy one
        elif levels is None and step < opt.steps:
            levels = noise_levels(teacher, noisy_pool, noise if redraw else None, opt.seed)

        board = Board(run.path / "tensorboard", step, enabled=world.main)
        bar = tqdm(total=opt.steps, initial=step, desc=opt.name, unit="step", disable=None if world.main else True)
        parallel, stopping = world.wrap(student), False
        while step < opt.steps and not stopping:
            lr = learning_rate(step, opt.steps, opt.lr, opt.schedule, opt.warmup, opt.lr_decay)
            for group in optimizer.param_groups:
                group["lr"] = lr

            inputs, wanted, names = [], [], set()
            if clean_count:
                samples = world.share(step * clean_count, clean_count)
                x, where = clean_source.crops(samples)  # B,C,P,P
                names |= {clean.files[k].name for k in where.image}
                with torch.no_grad():
                    theta = teacher.noise_estimator.estimate(x) if levels is None else one_for_each(levels, samples, opt.seed)
                    cov_n = teacher.noise_estimator.covariance(theta, x)
                random = generators(device, opt.seed, SYNTHESIS, samples)
                scale = 1 + opt.level_jitter * (2 * uniform(1, x, random) - 1)
                inputs.append(synthesise(x, cov_n, normal(x, random), scale))
                wanted.append(x)
            if noisy_count:
                samples = world.share(step * noisy_count, noisy_count)
                y, where = noisy_source.crops(samples)
                names |= {noisy.files[k].name for k in where.image}
                if redraw:
                    y = noise.add(y, generators(device, opt.seed, NOISE, samples))
                inputs.append(y)
                wanted.append(targets.crops(where, opt.patch_size) if targets else taught(teacher, y))

            optimizer.zero_grad()
            error = (parallel(torch.cat(inputs)) - torch.cat(wanted)).square().mean((1, 2, 3))  # B
            terms = {}
            if clean_count:
                terms["pairs"] = error[: len(x)].mean()
            if noisy_count:
                terms["posterior"] = opt.noisy_weight * error[-len(y) :].mean()
            loss = sum(terms.values())
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), opt.clip_grad or float("inf"))
            if world.any(not (torch.isfinite(loss) and torch.isfinite(norm)), device):
                names = ", ".join(sorted(names))
                shown = ", ".join(f"{k} {v.item():g}" for k, v in terms.items())
                problem = f"step {step + 1}: loss or gradient is not finite ({shown}, gradient norm {norm.item():g}); crops of {names}"
                skipped += 1
                if opt.on_nonfinite == "stop" or skipped > MAX_SKIPPED:
                    raise RunError(f"{problem}; try a lower --lr" + (f" ({skipped} steps skipped)" if skipped > 1 else ""))
                tqdm.write(f"warning: {problem}; step skipped")
            else:
                optimizer.step()
                update_average(average, student, step, opt.ema)
            step += 1
            bar.update()

            if step % opt.log_every == 0 or step == opt.steps:
                row = {"step": step, "lr": lr} | world.mean({"loss": loss, **terms, "grad_norm": norm})
                run.append_stats(row)
                rate = bar.format_dict["rate"] or 0.0
                waited = clean_source.share_waited() + noisy_source.share_waited()
                board.scalars(row | {"images_per_second": rate * opt.batch_size, "share_waiting_for_data": waited}, step)
                bar.set_postfix(loss=f"{row['loss']:.5f}", lr=f"{lr:.1e}", im_s=f"{rate * opt.batch_size:.1f}", wait=f"{waited:.0%}")
            if world.main and (step % opt.val_every == 0 or step == opt.steps):
                if val is not None and noise is not None:
                    row = {"step": step, "val_psnr": validation_psnr(average, val, noise, opt.seed)}
                    run.append_stats(row)
                    board.scalars(row, step)
                show_panel(board, average, torch.cat(inputs), torch.cat(wanted), step)
            if step % opt.save_every == 0:
                save()
            out_of_time = opt.max_minutes is not None and time.monotonic() - started > 60 * opt.max_minutes
            stopping = world.any(stop.requested or out_of_time, device)
        save()
        bar.close()
        board.close()

    if world.main:
        print(
            f"{opt.name}: {step} of {opt.steps} steps done; weights in {run.path / 'last.safetensors'}"
            + ("" if step == opt.steps else "; run the same command to continue")
        )
    return EXIT_RESUME if stop.requested and step < opt.steps else 0


def starting_student(opt, channels: int) -> MWCNN:
    """MWCNN from scratch, or --student, whose size then counts."""
    if opt.student is None:
        torch.manual_seed(int(hashed(opt.seed, WEIGHTS) >> np.uint64(1)))
        return MWCNN(channels, opt.student_width)
    student = load_model(opt.student, "cpu", opt.checkpoints_dir)
    if student.stage != 2 or student.channels != channels:
        raise UsageError(
            f"--student {student.file}: needed here is a stage-2 checkpoint for {channels} channels, this one is stage {student.stage} for {student.channels}"
        )
    return student.train().requires_grad_(True)


def posterior_means(teacher: BlindSpotDenoiser, noisy: ImagePool) -> tuple[ImagePool, Tensor]:
    """What the teacher makes of the noisy images, and the levels of their noise, (M,K,1,1)."""
    bar = tqdm(total=len(noisy), desc="teacher", unit="image", leave=False, disable=None)
    levels = []

    def one(_: int, y: Tensor) -> Tensor:
        bar.update()
        found = denoise(teacher, y)
        levels.append(found.theta)
        return found.image.to(y.device)

    return noisy.map(one), torch.cat(levels).to(noisy.device)


@torch.no_grad()
def taught(teacher: BlindSpotDenoiser, y: Tensor) -> Tensor:
    """What the teacher makes of noisy crops (B,C,P,P)."""
    return posterior_mean(y, teacher(y))


def noise_levels(teacher: BlindSpotDenoiser, noisy: ImagePool | DiskPool, noise: NoiseModel | None, seed: int) -> Tensor:
    """What the noise estimator finds on noisy images, (M,K,1,1), M at most MAX_LEVELS evenly spaced ones: pairs are made with the noise of one of them.

    noise: to be added first, where the images are still clean.
    """
    chosen = np.unique(np.linspace(0, len(noisy) - 1, min(len(noisy), MAX_LEVELS)).round().astype(int)).tolist()
    found = []
    for k in tqdm(chosen, desc="noise levels", unit="image", leave=False, disable=None):
        y = noisy.image(k)
        if noise:
            y = noise.add(y.cpu(), [generator("cpu", seed, NOISE, k)])
        found.append(denoise(teacher, y).theta)
    return torch.cat(found).to(next(teacher.parameters()).device)


def one_for_each(levels: Tensor, samples: np.ndarray, seed: int) -> Tensor:
    """One of the levels (M,K,1,1) for each sample index (B,), a function of (seed, sample): (B,K,1,1)."""
    index = hashed(seed, LEVEL, samples) % np.uint64(len(levels))
    return levels[torch.from_numpy(index.astype(np.int64)).to(levels.device)]


def validation_psnr(student: MWCNN, val: Images, noise: NoiseModel, seed: int) -> float:
    """Mean PSNR in dB on clean images made noisy; for watching only."""
    pool, found = val.pool(), []
    for k in range(len(pool)):
        x = pool.image(k)
        image = denoise(student, noise.add(x, [generator("cpu", seed, VALIDATION, k)])).image
        found.append(-10 * (image.clamp(0, 1) - x).square().mean().log10().item())
    return float(np.mean(found))


@torch.no_grad()
def show_panel(board: Board, student: MWCNN, inputs: Tensor, wanted: Tensor, step: int) -> None:
    """input | student | target, of the first and the last two crops of the batch."""
    few = [0, 1, -2, -1] if len(inputs) >= 4 else [0]
    board.panel("input, student, target", [inputs[few], student(inputs[few]), wanted[few]], step)


if __name__ == "__main__":
    run_script(main)
