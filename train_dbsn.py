"""Stage 1: trains D-BSN and the noise estimator from noisy images alone.

    python train_dbsn.py --name awgn25 --clean bsd432 --noise awgn --sigma 25
    python train_dbsn.py --name mine --noisy my_pictures/ --noise hg

The first is a study: noise is added to clean photographs. The second trains on really noisy pictures.

Training has three phases, of --mu-steps, --sigma-steps and --steps: mu alone by squared error, the covariances with
mu held, all jointly. Every random choice is a function of (seed, step), so the same command continues a stopped run
as if it had never stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.augment import augmented
from data.crops import DiskPool, ImagePool, crop_keys, draw_crops
from data.images import CHANNELS
from data.sets import find_images
from data.source import crop_source
from data.training import (
    ImageFiles,
    Images,
    add_noise_once,
    digest,
    hold_out,
    in_memory,
    look_at,
    note_conversion,
    warn_of_test_images,
    with_white_level,
)
from models import BlindSpotDenoiser, Prediction, check_run_name, load_model, noise_level, posterior
from models.gaussian import Covariance, add, constrained_nll, envelope_loss, nll
from models.noise import NoiseModel
from models.units import USUAL_NOISE
from options.base import noise_of
from options.stage1 import Stage1Options
from utils.device import choose_device, choose_dtype, denormals_as_zero, keep_freed_memory
from utils.distributed import World, join
from utils.errors import UsageError, run_script
from utils.logging import Board
from utils.random import Stream, generators, seed_weights, streams_of
from utils.run import RunFolder
from utils.training import Training, validation_psnr

HELD_OUT_CROPS = 32


def objective(
    p: Prediction, y: Tensor, phase: str, loss: str, quantile: float, level_weight: float = 0.0
) -> dict[str, Tensor]:
    """The terms whose sum is minimised, each a mean over pixels.

    y: (N,C,H,W). What the losses do is compared in docs/estimator.md.
    level_weight: the exact likelihood of each crop counts by its noise level to this power. An error e of mu costs
    e^2 / (2 (Sigma_mu + sigma^2)) of it, which is little where the noise is strong.
    """
    if phase == "mu":
        return {"l2": (p.mu - y).square().mean()}
    if loss == "constrained":
        return {"constrained_nll": constrained_nll(y, p.mu, p.cov_mu, p.cov_n).mean()}
    if loss == "split":
        # mu and Sigma_mu by the exact likelihood, with Sigma_n held; Sigma_n by the constrained one, with them held
        held = Tensor.detach
        return {
            "nll": nll(y, p.mu, add(p.cov_mu, p.cov_n.map(held))).mean(),
            "constrained_nll": constrained_nll(y, held(p.mu), p.cov_mu.map(held), p.cov_n).mean(),
        }
    exact = nll(y, p.mu, p.cov_total).mean((1, 2, 3))  # N
    if level_weight:
        exact = exact * (noise_level(p.cov_n.map(Tensor.detach)).mean((1, 2, 3)) / USUAL_NOISE) ** level_weight
    terms = {"nll": exact.mean()}
    if loss == "envelope":
        terms["envelope"] = envelope_loss(p.cov_n, p.cov_total, quantile)
    elif loss == "reward":
        # Laine et al. 2019: of all splits of the variance, the one with the most noise; sigma_n in 0..1
        terms["reward"] = -0.1 * noise_level(p.cov_n).mean()
    return terms


def main(argv: list[str] | None = None) -> int:
    options = Stage1Options()
    opt = options.parse(argv)
    with denormals_as_zero(), join(opt.device) as world:
        return train(opt, options, world)


def train(opt, options: Stage1Options, world: World) -> int:
    started = time.monotonic()
    device = choose_device(opt.device, world.local_rank, opt.deterministic)
    before = RunFolder(opt.checkpoints_dir / opt.name).recorded_options()
    if before is None:
        check_run_name(opt.name, opt.checkpoints_dir)
    dtype = choose_dtype(opt.amp, device, (before or {}).get("amp"))
    keep_freed_memory()
    world.check_share(opt.batch_size, "--batch-size")

    opt.streams = streams_of(before)
    if before and "units" not in before:
        opt.units = "white"  # a run of an older version, which knew no others

    if before and opt.white_level is None:
        opt.white_level = before.get("white_level")

    model = starting_model(opt, channels=CHANNELS[opt.mode])
    opt.units = model.units

    # Everything that can be wrong with the images is found before anything is written.
    material = prepare(opt, device, world, new=before is None)
    keys = crop_keys(opt.seed, Stream.CROPS, opt.streams)
    source = crop_source(material.pool, opt.patch_size, keys, opt.batch_size, world.local_size)

    # Run.
    total = opt.mu_steps + opt.sigma_steps + opt.steps
    best = {"best_held_out_nll": None}
    training = Training(opt, world, started, device, dtype, "stage1", total, model, model.dbsn, opt.white_level, best)
    size = {name: model.config[name] for name in ("width", "blocks", "mdc", "units")}  # --start-from may have another
    digests = {
        "training_images": digest(material.images, (before or {}).get("training_images")),
        "held_out_images": digest(material.held_out, (before or {}).get("held_out_images")),
    }
    loss_name = "exact" if opt.sigma_n == "residual" else opt.sigma_n  # of V; nothing of that estimator is learned
    trained = None

    assumed = {"units": "white", "level_weight": 0.0, "held_out_images": digests["held_out_images"]}

    with training.open(size, digests, options, assumed), source:
        for step in training.steps():
            # What is trained in this phase.
            phase = "mu" if step < opt.mu_steps else "sigma" if step < opt.mu_steps + opt.sigma_steps else "joint"
            if phase != trained:
                train_parts(model, phase)
                parallel, trained = world.wrap(model), phase

            # Noisy crops.
            samples = world.share(step * opt.batch_size, opt.batch_size)
            y, where = source.crops(samples)  # B,C,P,P
            if material.redraw:
                y = augmented(y, samples, opt.enlarge, opt.tones, opt.seed)
                y = material.noise.add(y, generators(device, opt.seed, Stream.NOISE, samples))

            # Forward, loss, backward, update.
            training.optimizer.zero_grad()
            p = parallel(y)
            terms = objective(p, y, phase, loss_name, opt.quantile, opt.level_weight)
            loss = sum(terms.values())
            loss.backward()
            measured = training.update(loss, terms, [(material.images, where)])

            # Log and evaluate.
            if training.due(opt.log_every):
                level = 255 * noise_level(p.cov_n).mean()
                training.log(measured | {"noise_level": level}, source.share_waited(), phase=phase)
            if world.main and training.due(opt.val_every):
                watch(training, material)
    return training.end()


@dataclass(frozen=True)
class Material:
    """What stage 1 learns from.

    images: decoded or left on disk. held_out: those that are watched; held_out_crops: noisy crops of them, (N,C,P,P).
    val: the images of --val. noise: what clean images get. redraw: they get it for each crop anew; else the pool has
    it.
    """

    images: Images | ImageFiles
    held_out: Images | ImageFiles
    held_out_crops: Tensor | None
    val: Images | None
    pool: ImagePool | DiskPool
    noise: NoiseModel | None
    redraw: bool


def prepare(opt, device: torch.device, world: World, new: bool) -> Material:
    """Finds and reads the images. new: whether the run begins, and opt.white_level may be set."""
    noise = noise_of(opt) if opt.clean else None
    redraw = noise is not None and opt.noise_draw == "fresh"
    images, val = find_material(opt, new)
    if in_memory(opt.images, images.memory(float_copies=1 if noise and not redraw else 0), device, world):
        images = images.decode()
    images, held_out = hold_out(images, opt.held_out, opt.seed)
    pool = images.pool(device)
    if noise and not redraw:
        pool = add_noise_once(pool, noise, opt.seed)
    crops = held_out_batch(held_out, noise, opt).to(device) if len(held_out) else None
    return Material(images, held_out, crops, val, pool, noise, redraw)


def find_material(opt, new: bool) -> tuple[ImageFiles, Images | None]:
    """The training images, and those of --val. new: whether the run begins, and opt.white_level may be set."""
    flag = "--clean" if opt.clean else "--noisy"
    files = find_images(opt.clean or opt.noisy, opt.data_root, flag)
    warn_of_test_images(opt.clean or opt.noisy, files)
    # synthetic noise has levels of white, and so has CNN_est
    units = "white" if opt.clean or opt.sigma_n != "residual" else opt.units
    val = None
    if opt.val:
        val_files = find_images(opt.val, opt.data_root, "--val")
        val = look_at(val_files, opt.mode, opt.white_level, what="--val images", units=units).decode()
    images = look_at(files, opt.mode, opt.white_level, opt.patch_size, "training images", units)
    if opt.noisy:
        if new:
            images = with_white_level(images, opt.units)
            opt.white_level = images.white_level
        note_conversion(images)
    return images, val


def train_parts(model: BlindSpotDenoiser, phase: str) -> None:
    """Holds what is not trained in the phase: first the covariances, then mu, then nothing."""
    model.dbsn.requires_grad_(phase != "sigma")
    model.cov_head.requires_grad_(phase != "mu")
    model.noise_estimator.requires_grad_(phase != "mu")


def starting_model(opt, channels: int) -> BlindSpotDenoiser:
    """A model from scratch, or with the weights of --start-from, whose size then counts.

    The weights are D-BSN's, and of the heads those that have the same meaning.
    """
    size, units = dict(width=opt.width, blocks=opt.blocks, mdc=opt.mdc), opt.units or "noise"
    source = load_model(opt.start_from, "cpu", opt.checkpoints_dir) if opt.start_from else None
    if source:
        if source.stage != 1 or source.channels != channels:
            raise UsageError(
                f"--start-from {source.file}: needed here is a stage-1 checkpoint for {channels} channels, "
                f"this one is stage {source.stage} for {source.channels}"
            )
        if source.dbsn.hole != opt.hole:
            raise UsageError(
                f"--hole {opt.hole}: {source.file} has --hole {source.dbsn.hole}, and other kernels; give that, or "
                "leave --start-from out"
            )
        units = opt.units or source.units
        if source.units == "noise" and units == "white":
            raise UsageError(f"--units white: {source.file} has units of noise, so leave --units out")
        if source.units != units:
            source.take_up_units_of_noise()
        size = {name: source.config[name] for name in size}
    seed_weights(opt.seed)
    head = "total" if opt.sigma_n in ("envelope", "residual") else "mu"
    estimator = "residual" if opt.sigma_n == "residual" else "cnn"
    model = BlindSpotDenoiser(
        channels, opt.noise, **size, head=head, estimator=estimator, units=units, stride=opt.stride, hole=opt.hole
    )
    if source:
        model.dbsn.load_state_dict(source.dbsn.state_dict())
        if (source.noise, source.head) == (model.noise, model.head):
            model.cov_head.load_state_dict(source.cov_head.state_dict())
            if source.estimator == model.estimator:
                model.noise_estimator.load_state_dict(source.noise_estimator.state_dict())
    return model


def held_out_batch(held_out: Images | ImageFiles, noise: NoiseModel | None, opt) -> Tensor:
    """Noisy crops (B,C,P,P) that are never trained on, the same at every evaluation; their noise is drawn once."""
    pool = held_out.pool()
    if noise:
        pool = add_noise_once(pool, noise, opt.seed, Stream.HELD_OUT)
    keys = crop_keys(opt.seed, Stream.HELD_OUT_CROPS, opt.streams)
    return pool.crops(draw_crops(pool.sizes, np.arange(HELD_OUT_CROPS), opt.patch_size, keys), opt.patch_size)


def watch(training: Training, material: Material) -> None:
    """Evaluates the averaged weights; those of the best held-out likelihood are saved."""
    held_out = material.held_out_crops
    row = evaluate(training.average, held_out, material.val, material.noise, training.opt.seed)
    if row:
        training.note(row)
    if held_out is not None:
        best = training.kept["best_held_out_nll"]
        if best is None or row["held_out_nll"] < best:
            training.kept["best_held_out_nll"] = row["held_out_nll"]
            training.save_weights("best")
        show_panel(training.board, training.average, held_out[:4], training.step)


@torch.no_grad()
def evaluate(
    model: BlindSpotDenoiser, held_out: Tensor | None, val: Images | None, noise: NoiseModel | None, seed: int
) -> dict[str, float]:
    """Held-out likelihood (what models are chosen by) and, for watching only, PSNR on clean images made noisy."""
    row = {}
    if held_out is not None:
        row["held_out_nll"] = nll_of(model, held_out)
    if val is not None and noise is not None:
        row |= validation_psnr(model, val, noise, seed)
    return row


def nll_of(model: BlindSpotDenoiser, y: Tensor, at_once: int = 8) -> float:
    """Exact negative log-likelihood in nats per pixel of noisy images (B,C,P,P)."""
    parts = [nll(part, *predictive(model, part)).mean((1, 2, 3)) for part in y.split(at_once)]
    return torch.cat(parts).mean().item()


def predictive(model: BlindSpotDenoiser, y: Tensor) -> tuple[Tensor, Covariance]:
    """mu and the covariance of the noisy pixel. Head "total" gives both without the noise estimator."""
    if model.head == "total":
        return model.context(y)
    p = model(y)
    return p.mu, p.cov_total


@torch.no_grad()
def show_panel(board: Board, model: BlindSpotDenoiser, y: Tensor, step: int) -> None:
    """noisy | mu | posterior mean | its standard deviation, brightened eightfold."""
    p = model(y)
    x = posterior(y, p)
    board.panel("held out: noisy, mu, posterior, std x8", [y, p.mu, x.mean], step, spread=8 * x.std)


if __name__ == "__main__":
    run_script(main)
