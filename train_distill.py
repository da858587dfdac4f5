"""Stage 2: a frozen stage-1 model teaches MWCNN.

    python train_distill.py --name awgn25-full --teacher awgn25 --clean bsd432 --synthetic-noisy bsd432 \\
        --noise awgn --sigma 25
    python train_distill.py --name mine-full --teacher mine --clean bsd432 --noisy my_pictures/
    python train_distill.py --name mine-full --teacher mine --refine --student gray-hg-blind-full --noisy my_pictures/

The student sees two kinds of crops in a batch: clean ones x, made noisy with the noise model that the teacher has
learned, whose target is x; and noisy ones y, whose target is the teacher's posterior mean. Clean and noisy images
share no picture: images named as both are split, half each.

With --refine what a student makes of the noisy images stands for clean ones: it has their structures, and the noise
that is added is theirs. It is the iterative data refinement of Zhang et al. 2022, with the noise that stage 1 finds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.augment import augmented
from data.crops import Crops, DiskPool, ImagePool, crop_keys, draw_crops
from data.images import MODES
from data.sets import evenly_spaced, find_images
from data.source import crop_source
from data.training import (
    ImageFiles,
    Images,
    add_noise_once,
    digest,
    disjoint,
    in_memory,
    look_at,
    note_conversion,
    warn_of_test_images,
    with_white_level,
    with_white_of,
)
from models import MWCNN, BlindSpotDenoiser, check_run_name, load_model, posterior_mean
from models.checks import as_checked, check_noise, neighbours_share_noise
from models.inference import denoise_batch
from models.mwcnn import revive, shut_off
from models.noise import NOISES, NoiseModel, ResidualEstimator
from models.outliers import outlying
from models.stride import denoise_picture
from models.units import units_in_use
from options.base import noise_of
from options.stage2 import Stage2Options
from utils.checkpoint import checksum
from utils.device import choose_device, choose_dtype, denormals_as_zero, keep_freed_memory
from utils.distributed import World, join
from utils.errors import UsageError, run_script
from utils.logging import Board
from utils.random import Stream, generator, generators, hashed, seed_weights, streams_of, uniform
from utils.run import RunFolder
from utils.training import Training, validation_psnr

MAX_THETAS = 256
REVIVING = 64  # crops that say which units are shut off
REFINED = 16_000_000  # pixels of the images that --refine takes: more would take hours and gigabytes
DARK = (0.25 / 255) ** 2  # squared error below which no crop is better than another
ALIKE = 4.0  # ratio of the widths of two ranges of values that are taken for the same scale


def log_loss(errors: Tensor) -> Tensor:
    """Mean logarithm of the mean squared errors (N,) of crops, 0..1: that of PSNR but for the factor.

    An error below DARK gains no more: a crop of one value would count for ever.
    """
    return (errors + DARK).log().mean()


def main(argv: list[str] | None = None) -> int:
    options = Stage2Options()
    opt = options.parse(argv)
    with denormals_as_zero(), join(opt.device) as world:
        return train(opt, options, world)


def train(opt, options: Stage2Options, world: World) -> int:
    started = time.monotonic()
    device = choose_device(opt.device, world.local_rank, opt.deterministic)
    before = RunFolder(opt.checkpoints_dir / opt.name).recorded_options()
    if before is None:
        check_run_name(opt.name, opt.checkpoints_dir)
    dtype = choose_dtype(opt.amp, device, (before or {}).get("amp"))
    keep_freed_memory()
    noisy_count = round(opt.noisy_share * opt.batch_size)

    # Teacher and images. Everything that can be wrong with them is found before anything is written.
    teacher = find_teacher(opt, device, dtype)
    if before and opt.white_level is None:
        opt.white_level = before.get("white_level")
    if before and opt.clean_white_level is None:
        opt.clean_white_level = before.get("clean_white_level")
    opt.streams = streams_of(before)
    if before and opt.images == "auto":  # it decides what the targets are, see Lessons: a run keeps what it began with
        opt.images = before.get("images", "memory")
    material = prepare(opt, teacher, device, world, new=before is None)

    # Student and run.
    student = starting_student(opt, teacher)
    on_disk = before is None and noisy_count and opt.images == "disk" and not teacher.shared_noise
    if opt.noisy and (on_disk or student.shared_noise):
        shared = neighbours_of(material.noisy_pool)
        if on_disk and True in shared:
            raise UsageError(
                "--images disk: neighbouring pixels of some --noisy images share their noise, which the teacher "
                "removes from whole images alone: give --noisy-share 0, or fewer images with --images memory"
            )
        if student.shared_noise and False in shared:
            student.config["independent_noise"] = True
    if opt.refine:
        student.config["refined"] = True
    world.check_share(noisy_count, "noisy part of the batch,")
    world.check_share(opt.batch_size - noisy_count, "clean part of the batch,")
    training = Training(opt, world, started, device, dtype, "stage2", opt.steps, student, student, material.white_level)
    training.kept = {"thetas": None}
    begun_with: dict[str, str] = {}
    if opt.refine:
        begun_with["student_weights"] = checksum_of(load_model(opt.student, "cpu", opt.checkpoints_dir))
    digests = {
        "clean_images": digest(material.clean, (before or {}).get("clean_images")),
        "noisy_images": digest(material.noisy, (before or {}).get("noisy_images")),
        "teacher_weights": checksum_of(teacher),
    } | begun_with
    size = {"student_width": student.config["width"], "student_blocks": student.blocks}
    assumed = {"images": "memory", "student_blocks": "plain", "level_jitter": 0.1, "level_scale": 1.0, "units": None}
    assumed |= begun_with

    with training.open(size, digests, options, assumed):
        if training.step < opt.steps:
            teach(training, teacher, material, noisy_count)
        else:
            training.save()  # it may have been killed between its last state and the weights
    return training.end()


def teach(training: Training, teacher: BlindSpotDenoiser, material: Material, noisy_count: int) -> None:
    """The steps that are left. noisy_count: how many crops of a batch are noisy ones, which the teacher denoises."""
    opt, world, device, student = training.opt, training.world, training.device, training.model
    clean_count = opt.batch_size - noisy_count
    if opt.refine:
        material = with_results(material, opt, device, training.dtype)
    clean, noisy, noise = material.clean, material.noisy, material.noise
    clean_pool, noisy_pool = material.clean_pool, material.noisy_pool
    unlike = opt.tones or opt.enlarge != (1, 1)
    ends = ends_of(clean_pool) if unlike and clean_pool and teacher.units == "noise" else (0.0, 1.0)
    clean_keys, noisy_keys = (crop_keys(opt.seed, s, opt.streams) for s in (Stream.CROPS, Stream.NOISY_CROPS))
    clean_source = crop_source(clean_pool, opt.patch_size, clean_keys, clean_count, world.local_size)
    noisy_source = crop_source(noisy_pool, opt.patch_size, noisy_keys, noisy_count, world.local_size)

    with clean_source, noisy_source:
        whole = noisy_count > 0 and not material.redraw and opt.images == "memory"
        lessons = Lessons(teacher, material, whole, opt, training.kept["thetas"])
        training.kept["thetas"] = None if lessons.thetas is None else lessons.thetas.flatten(1).tolist()
        if opt.revive and training.step == 0:
            samples = 2**40 + np.arange(REVIVING)  # none that is trained on
            where = draw_crops(clean_pool.sizes, samples, opt.patch_size, clean_keys)
            give_new_weights(training, lessons.make_noisy(clean_pool.crops(where, opt.patch_size), samples))
        parallel = world.wrap(student)
        for step in training.steps():
            # Clean crops x, made noisy with what the teacher has learned, and noisy ones y, which it denoises.
            inputs, wanted, crops = [], [], []
            if clean_count:
                samples = world.share(step * clean_count, clean_count)
                x, where = clean_source.crops(samples)  # B,C,P,P
                x = augmented(x, samples, opt.enlarge, opt.tones, opt.seed, ends)
                inputs.append(lessons.make_noisy(x, samples))
                wanted.append(x)
                crops.append((clean, where))
            if noisy_count:
                samples = world.share(step * noisy_count, noisy_count)
                y, where = noisy_source.crops(samples)
                if material.redraw:
                    y = noise.add(y, generators(device, opt.seed, Stream.NOISE, samples))
                inputs.append(y)
                wanted.append(lessons.targets(y, where))
                crops.append((noisy, where))

            # Forward, loss, backward, update.
            training.optimizer.zero_grad()
            error = (parallel(torch.cat(inputs)) - torch.cat(wanted)).square().mean((1, 2, 3))  # B
            terms = {}
            if clean_count:
                pairs = error[: len(x)]
                terms["pairs"] = log_loss(pairs) if opt.pairs_loss == "log" else pairs.mean()
            if noisy_count:
                terms["posterior"] = opt.noisy_weight * error[-len(y) :].mean()
            loss = sum(terms.values())
            loss.backward()
            measured = training.update(loss, terms, crops)

            # Log and evaluate.
            if training.due(opt.log_every):
                training.log(measured, clean_source.share_waited() + noisy_source.share_waited())
            if world.main and training.due(opt.val_every):
                if material.val is not None and noise is not None:
                    training.note(validation_psnr(training.average, material.val, noise, opt.seed))
                show_panel(training.board, training.average, torch.cat(inputs), torch.cat(wanted), training.step)
            if world.main and training.step == opt.steps and not opt.refine:  # its form is the given student's
                note_shut_off(training.average, torch.cat(inputs))


def find_teacher(opt, device: torch.device, dtype: torch.dtype) -> BlindSpotDenoiser:
    teacher = load_model(opt.teacher, device, opt.checkpoints_dir)
    if teacher.stage != 1:
        stages = "is a stage-2 checkpoint (MWCNN); the teacher is a stage-1 one, made by train_dbsn.py"
        raise UsageError(f"--teacher {teacher.file} {stages}")
    if opt.noise and NOISES[opt.noise].needs_color and teacher.channels == 1:
        problem = f"--noise {opt.noise} describes correlated colour channels"
        raise UsageError(f"{problem}; the teacher {teacher.file} is a gray one")
    teacher.dtype = dtype
    if opt.units == "white" and teacher.units == "noise":
        raise UsageError(f"--units white: {teacher.file} has units of noise, so leave --units out")
    if opt.units == "noise" and teacher.level_is_learned:
        raise UsageError(f"--units noise: {teacher.file} has learned a level, in white units, so leave --units out")
    teacher.units = opt.units or teacher.units
    if opt.read_noise:
        if teacher.level_is_learned:
            problem = f"--read-noise {opt.read_noise}: {teacher.file} has a noise estimator that was trained"
            raise UsageError(f"{problem}, which finds its own kind of noise; use a teacher with --sigma-n residual")
        teacher.noise = opt.read_noise
        teacher.noise_estimator = ResidualEstimator(teacher.channels, NOISES[opt.read_noise])
    return teacher


@dataclass(frozen=True)
class Material:
    """What stage 2 learns from.

    clean, noisy: the images, decoded or left on disk. val: those of --val. noise: what --synthetic-noisy images get.
    redraw: they get it for each crop anew; else the noisy pool has it. recorded: whether the noisy files have 8 bits,
    with a known white. white_level: the noisy files' value of white; None: full_scale of their type.
    """

    clean: Images | ImageFiles
    noisy: Images | ImageFiles
    val: Images | None
    clean_pool: ImagePool | DiskPool | None
    noisy_pool: ImagePool | DiskPool
    noise: NoiseModel | None = None
    redraw: bool = False
    recorded: bool = False
    white_level: float | None = None


def prepare(opt, teacher: BlindSpotDenoiser, device: torch.device, world: World, new: bool) -> Material:
    """Finds the images, and decodes them where they fit: opt.images becomes "memory" or "disk". new: see there."""
    files, noisy_files, val = find_material(opt, teacher, new)
    if opt.refine:
        files, noisy_files = (one.of_the_middle(REFINED, opt.patch_size) for one in (files, noisy_files))
    noise = noise_of(opt) if opt.synthetic_noisy else None
    redraw = noise is not None and opt.noise_draw == "fresh"
    # float copies: the images with their noise, and the targets
    needed = files.memory() + noisy_files.memory(float_copies=0 if redraw else 2 if noise else 1)
    in_ram = opt.refine or in_memory(opt.images, needed, device, world)
    opt.images = "memory" if in_ram else "disk"
    clean, noisy = (one.decode() if in_ram else one for one in (files, noisy_files))
    noisy_pool = noisy.pool(device)
    clean_pool = clean.pool(device) if len(clean) else None
    if clean_pool and opt.noisy and teacher.units == "noise" and not opt.clean_white_level:
        clean_pool = of_one_brightness(clean_pool, noisy_pool)
    if noise and not redraw:
        noisy_pool = add_noise_once(noisy_pool, noise, opt.seed)
    recorded = noisy_files.as_bytes and teacher.units == "white"
    white_level = opt.white_level or teacher.values["white_level"]
    return Material(clean, noisy, val, clean_pool, noisy_pool, noise, redraw, recorded, white_level)


def find_material(opt, teacher: BlindSpotDenoiser, new: bool) -> tuple[ImageFiles, ImageFiles, Images | None]:
    """The clean images, the noisy ones, and those of --val. Noise is not yet added to --synthetic-noisy images.

    new: whether the run begins. opt.white_level is then set where the noisy images need one.
    """
    mode, units = MODES[teacher.channels], teacher.units
    flag, named = ("--noisy", opt.noisy) if opt.noisy else ("--synthetic-noisy", opt.synthetic_noisy)
    clean_files = find_images(opt.clean, opt.data_root, "--clean") if opt.clean else []
    noisy_files = find_images(named, opt.data_root, flag)
    warn_of_test_images([*opt.clean, *named], [*clean_files, *noisy_files])
    if clean_files:
        clean_files, noisy_files = disjoint(clean_files, noisy_files, opt.seed, flag)
    units = "white" if opt.synthetic_noisy else units  # synthetic noise has levels of white
    white, val = opt.clean_white_level, None
    if opt.val:
        val_files = find_images(opt.val, opt.data_root, "--val")
        val = look_at(val_files, mode, white, what="--val images").decode()
    clean = look_at(clean_files, mode, white, opt.patch_size, "--clean images", units)
    if opt.noisy:
        white_level = opt.white_level or teacher.values["white_level"]
        noisy = look_at(noisy_files, mode, white_level, opt.patch_size, "--noisy images", units)
        if new and not teacher.level_is_learned:  # a level keeps its white
            noisy = with_white_level(noisy, teacher.units)
        if noisy.white_level != white_level:
            opt.white_level = noisy.white_level
        clean = with_white_of(noisy, clean) if new else clean
        opt.clean_white_level = clean.white_level
        note_conversion(noisy)
    else:
        noisy = look_at(noisy_files, mode, white, opt.patch_size, "--synthetic-noisy images")
    return clean, noisy, val


def of_one_brightness(clean: ImagePool | DiskPool, noisy: ImagePool | DiskPool) -> ImagePool | DiskPool:
    """Clean images with the range of the noisy ones, where the widths of the two differ by more than ALIKE.

    The teacher knows the noise of the noisy images' brightness. It would be too little or too much for another.
    """
    (low, high), (to_low, to_high) = ends_of(clean), ends_of(noisy)
    if not (high > low and to_high > to_low):
        return clean
    factor = (to_high - to_low) / (high - low)
    if 1 / ALIKE <= factor <= ALIKE:
        return clean
    tqdm.write(
        f"note: the --clean images have {low:g} to {high:g} of their full scale, the --noisy ones {to_low:g} to "
        f"{to_high:g}: the clean ones are brought to that range; --clean-white-level says another"
    )
    return clean.map(lambda _, x: to_low + (x - low) * factor)


def ends_of(pool: ImagePool | DiskPool) -> tuple[float, float]:
    """The least and the greatest value of evenly spaced images, without single pixels far outside."""
    found = [outlying(pool.image(k))[0].aminmax() for k in evenly_spaced(len(pool), MAX_THETAS)]
    return min(float(e.min) for e in found), max(float(e.max) for e in found)


def with_results(material: Material, opt, device: torch.device, dtype: torch.dtype) -> Material:
    """Material whose clean images are also what --student makes of the noisy ones.

    It works in units of noise as in test.py, but where a white level says what the values are.
    """
    model = load_model(opt.student, device, opt.checkpoints_dir)
    model.dtype = dtype
    if opt.units == "noise" or not opt.white_level:
        model.units = units_in_use(model)
    bar = tqdm(total=len(material.noisy), desc="refining", unit="image", leave=False, disable=None)

    def one(_: int, y: Tensor) -> Tensor:
        bar.update()
        return denoise_picture(model, y).image.to(y.device)

    results = material.noisy_pool.map(one)
    names = Images([*material.clean.files, *material.noisy.files], [])  # for messages
    return replace(
        material, clean=names, clean_pool=material.clean_pool.joined(results) if material.clean_pool else results
    )


def checksum_of(model: BlindSpotDenoiser | MWCNN) -> str:
    """Of its weights, on whatever device they are."""
    return checksum({name: tensor.cpu() for name, tensor in model.state_dict().items()}, {})


def neighbours_of(noisy: ImagePool | DiskPool) -> set[bool | None]:
    """Whether neighbouring pixels share their noise, as checks of evenly spaced images say; None where they cannot."""
    return {
        neighbours_share_noise(check_noise(as_checked(noisy.image(k))[0]))
        for k in evenly_spaced(len(noisy), MAX_THETAS)
    }


def starting_student(opt, teacher: BlindSpotDenoiser) -> MWCNN:
    """MWCNN from scratch, or --student, whose size then counts. One of colour images can become one of gray ones."""
    shared = teacher.shared_noise or (opt.pairs == "drawn" and NOISES[opt.noise].shared)
    if opt.student is None:
        seed_weights(opt.seed)
        return MWCNN(teacher.channels, opt.student_width, teacher.units, opt.student_blocks, shared)
    student = load_model(opt.student, "cpu", opt.checkpoints_dir)
    to_gray = student.channels > teacher.channels and not opt.refine
    if student.stage != 2 or (student.channels != teacher.channels and not to_gray):
        kind = {1: "gray", 3: "colour"}
        raise UsageError(
            f"--student {student.file}: needed here is a stage-2 checkpoint for {kind[teacher.channels]} images, "
            f"this one is stage {student.stage} for {kind[student.channels]} ones"
        )
    if opt.revive and student.blocks != "residual":
        raise UsageError(f"--revive: {student.file} has no residual blocks, in which alone units have new weights")
    if to_gray:
        student.take_up_gray()
    if teacher.units == "noise" and student.units == "white":
        student.take_up_units_of_noise()
    changed = ("shared_noise", "independent_noise", "refined")
    student.config = {key: value for key, value in student.config.items() if key not in changed}
    student.config |= {"shared_noise": True} if shared else {}
    return student.train().requires_grad_(True)


def give_new_weights(training: Training, y: Tensor) -> None:
    """New weights for the units of the student, and of its average, that respond nowhere to noisy crops y."""
    for network in (training.model, training.average):
        revived, left = revive(network, y, generator("cpu", training.opt.seed, Stream.REVIVED))
    tqdm.write(f"note: {revived} units of the student were shut off, and have new weights")
    if left:
        tqdm.write(f"note: all units of {', '.join(left)} are shut off: nothing is left there to measure new ones by")


def note_shut_off(student: MWCNN, inputs: Tensor) -> None:
    """One line where parts of the student do nothing on its last batch."""
    if parts := shut_off(student, inputs):
        form = "" if student.blocks == "residual" else " and --student-blocks residual"
        again = ", or go on from it with --student and --revive" if student.blocks == "residual" else ""
        tqdm.write(
            f"note: {', '.join(parts)} of the student {'do' if parts[1:] else 'does'} nothing: training has shut "
            f"{'them' if parts[1:] else 'it'} off, and it works as a smaller network; try a lower --lr{form}{again}"
        )


class Lessons:
    """What the teacher gives the student: noise for clean crops, and targets for noisy ones.

    whole: the teacher is frozen, so each noisy image that stays as it is can be denoised once, whole, and never again.
    From disk that would need a whole image for every crop. There, as with fresh noise, the teacher denoises the crop,
    which lacks the surroundings at its borders.
    thetas: of the noise, (M,K), where a stopped run has found them: they take the teacher an hour on a slow CPU.
    """

    def __init__(
        self,
        teacher: BlindSpotDenoiser,
        material: Material,
        whole: bool,
        opt,
        thetas: list[list[float]] | None = None,
    ):
        self.teacher, self.opt, self.recorded = teacher, opt, material.recorded
        self.drawn = material.noise if opt.pairs == "drawn" else None  # the pairs' noise, where not the teacher's
        noisy, noise = material.noisy_pool, material.noise if material.redraw else None
        self.means, self.thetas = posterior_means(teacher, noisy) if whole else (None, None)
        if self.drawn or teacher.level_is_learned:
            self.thetas = None  # not needed, or found on a clean image as on a noisy one
        elif thetas is not None:
            self.thetas = torch.tensor(thetas, device=next(teacher.parameters()).device)[:, :, None, None]
        elif self.thetas is None:
            stream = Stream.NOISE if opt.streams == 1 else Stream.THETA_NOISE
            self.thetas = noise_thetas(teacher, noisy, noise, opt.seed, stream)

    @torch.no_grad()
    def make_noisy(self, x: Tensor, samples: np.ndarray) -> Tensor:
        """Clean crops (B,C,P,P) with noise as --pairs says, a function of (seed, samples)."""
        estimator, seed = self.teacher.noise_estimator, self.opt.seed
        if self.drawn:
            return self.drawn.add(x, generators(x.device, seed, Stream.SYNTHESIS, samples))
        theta = estimator.estimate(x) if self.thetas is None else one_for_each(self.thetas, samples, seed)
        cov_n = estimator.covariance(theta, x)
        random = generators(x.device, seed, Stream.SYNTHESIS, samples)
        scale = self.opt.level_scale * (1 + self.opt.level_jitter * (2 * uniform(1, x, random) - 1))
        noise = estimator.noise
        y = x + scale.view(-1, 1, 1, 1) * noise.draw(theta, cov_n, x, random)
        return noise.recorded(y) if self.recorded else y

    @torch.no_grad()
    def targets(self, y: Tensor, where: Crops) -> Tensor:
        """The teacher's posterior means of noisy crops y (B,C,P,P)."""
        if self.means is not None:
            return self.means.crops(where, self.opt.patch_size)
        return posterior_mean(y, self.teacher(y))


def posterior_means(teacher: BlindSpotDenoiser, noisy: ImagePool) -> tuple[ImagePool, Tensor]:
    """What the teacher makes of the noisy images, and the theta of their noise, (M,K,1,1)."""
    bar = tqdm(total=len(noisy), desc="teacher", unit="image", leave=False, disable=None)
    thetas = []

    def one(_: int, y: Tensor) -> Tensor:
        bar.update()
        found = denoise_picture(teacher, y)
        thetas.append(found.theta)
        return found.image.to(y.device)

    return noisy.map(one), torch.cat(thetas).to(noisy.device)


def noise_thetas(
    teacher: BlindSpotDenoiser, noisy: ImagePool | DiskPool, noise: NoiseModel | None, seed: int, stream: Stream
) -> Tensor:
    """What the noise estimator finds on noisy images, (M,K,1,1), M at most MAX_THETAS.

    The images are evenly spaced ones. Pairs are made with the noise of one of them. noise: to be added first, from
    the stream, where the images are still clean.
    """
    found = []
    for k in tqdm(evenly_spaced(len(noisy), MAX_THETAS), desc="noise levels", unit="image", leave=False, disable=None):
        y = noisy.image(k)
        if noise:
            y = noise.add(y.cpu(), [generator("cpu", seed, stream, k)])
        found.append((denoise_batch if noise else denoise_picture)(teacher, y).theta)
    return torch.cat(found).to(next(teacher.parameters()).device)


def one_for_each(thetas: Tensor, samples: np.ndarray, seed: int) -> Tensor:
    """One of the thetas (M,K,1,1) for each sample index (B,), a function of (seed, sample): (B,K,1,1)."""
    index = hashed(seed, Stream.THETAS, samples) % np.uint64(len(thetas))
    return thetas[torch.from_numpy(index.astype(np.int64)).to(thetas.device)]


@torch.no_grad()
def show_panel(board: Board, student: MWCNN, inputs: Tensor, wanted: Tensor, step: int) -> None:
    """input | student | target, of the first and the last two crops of the batch."""
    few = [0, 1, -2, -1] if len(inputs) >= 4 else [0]
    board.panel("input, student, target", [inputs[few], student(inputs[few]), wanted[few]], step)


if __name__ == "__main__":
    run_script(main)
