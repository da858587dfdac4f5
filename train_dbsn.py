"""Stage 1: trains D-BSN and the noise estimator from noisy images alone.

    python train_dbsn.py --name awgn25 --clean bsd432 --noise awgn --sigma 25        noise added to clean photographs: a study
    python train_dbsn.py --name mine --noisy my_pictures/ --noise hg                 really noisy pictures

Three phases, of --mu-steps, --sigma-steps and --steps: mu alone by squared error, the covariances with mu held, all jointly. Every random choice is a
function of (seed, step), so the same command continues a stopped run as if it had never stopped.
"""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.crops import draw_crops
from data.sets import find_images
from data.source import crop_source
from data.training import (
    HELD_OUT,
    NOISE,
    VALIDATION,
    WEIGHTS,
    ImageFiles,
    Images,
    add_noise_once,
    digest,
    hold_out,
    in_memory,
    look_at,
    note_conversion,
    warn_of_test_images,
)
from models import BlindSpotDenoiser, Prediction, load_model, noise_level, posterior
from models.gaussian import add, constrained_nll, envelope_loss, nll
from models.inference import denoise
from models.noise import NoiseModel
from options.base import noise_of
from options.stage1 import Stage1Options
from utils.device import choose_device, choose_dtype, denormals_as_zero, device_name, keep_freed_memory
from utils.distributed import World, join
from utils.errors import EXIT_RESUME, RunError, UsageError, run_script
from utils.logging import Board
from utils.optim import make_optimizer
from utils.run import FollowedRun, RunFolder, StopRequest
from utils.random import generator, generators, hashed
from utils.schedule import learning_rate, update_average
from utils.training import COMPILE_MODES, plain_options, restore, training_tensors

HELD_OUT_CROPS = 32
MAX_SKIPPED = 10  # steps whose loss or gradient was not finite, under --on-nonfinite skip


def objective(p: Prediction, y: Tensor, phase: str, loss: str, quantile: float) -> dict[str, Tensor]:
    """The terms whose sum is minimised, each a mean over pixels; y (N,C,H,W). What the losses do is compared in docs/estimator.md."""
    if phase == "mu":
        return {"l2": (p.mu - y).square().mean()}
    if loss == "constrained":
        return {"constrained_nll": constrained_nll(y, p.mu, p.cov_mu, p.cov_n).mean()}
    terms = {"nll": nll(y, p.mu, p.cov_total).mean()}
    if loss == "envelope":
        terms["envelope"] = envelope_loss(p.cov_n, p.cov_total, quantile)
    elif loss == "reward":  # Laine et al. 2019: of all splits of the variance, the one with the most noise; sigma_n in 0..1
        terms["reward"] = -0.1 * noise_level(p.cov_n).mean()
    elif loss == "split":  # mu and Sigma_mu by the exact likelihood, with Sigma_n held; Sigma_n by the constrained one, with them held
        held = lambda t: t.detach()  # noqa: E731
        terms["nll"] = nll(y, p.mu, add(p.cov_mu, p.cov_n.map(held))).mean()
        terms["constrained_nll"] = constrained_nll(y, p.mu.detach(), p.cov_mu.map(held), p.cov_n).mean()
    return terms


def main(argv: list[str] | None = None) -> int:
    options = Stage1Options()
    opt = options.parse(argv)
    with denormals_as_zero(), join(opt.device) as world:
        return train(opt, options, world)


def train(opt, options: Stage1Options, world: World) -> int:
    started = time.monotonic()
    device = choose_device(opt.device, world.local_rank, opt.deterministic)
    dtype = choose_dtype(opt.amp, device)
    keep_freed_memory()
    channels = {"gray": 1, "color": 3}[opt.mode]

    world.check_share(opt.batch_size, "--batch-size")

    # images: everything that can be wrong with them is found before anything is written
    files = find_images(opt.clean or opt.noisy, opt.data_root, "--clean" if opt.clean else "--noisy")
    warn_of_test_images(opt.clean or opt.noisy, files)
    val = look_at(find_images(opt.val, opt.data_root, "--val"), opt.mode, opt.white_level, what="--val images").decode() if opt.val else None
    images = look_at(files, opt.mode, opt.white_level, opt.patch_size, "training images")
    if opt.noisy:
        note_conversion(images)
    noise = noise_of(opt) if opt.clean else None
    redraw = noise is not None and opt.noise_draw == "fresh"
    if in_memory(opt.images, images.memory(float_copies=1 if noise and not redraw else 0), device, world):
        images = images.decode()
    images, held_out = hold_out(images, opt.held_out, opt.seed)
    pool = images.pool(device)
    if noise and not redraw:
        pool = add_noise_once(pool, noise, opt.seed)
    held_out_crops = held_out_batch(held_out, noise, opt.patch_size, opt.seed).to(device) if len(held_out) else None

    model = starting_model(opt, channels)
    model.to(device, memory_format=torch.channels_last)
    model.dtype = dtype
    average = copy.deepcopy(model).eval().requires_grad_(False)
    if opt.compile != "off":
        model.dbsn.compile(mode=COMPILE_MODES[opt.compile])  # in place: names of weights stay
    optimizer = make_optimizer(opt.optimizer, model.parameters(), opt.lr)
    total = opt.mu_steps + opt.sigma_steps + opt.steps
    loss_name = "exact" if opt.estimator == "residual" else opt.loss  # of V; nothing of that estimator is learned

    folder = RunFolder if world.main else FollowedRun
    source = crop_source(pool, opt.patch_size, opt.seed, opt.batch_size, world.local_size)
    with folder(opt.checkpoints_dir / opt.name) as run, StopRequest() as stop, source:
        before = run.recorded_options() or {}
        size = {name: model.config[name] for name in ("width", "blocks", "mdc")}  # those of --start-from may be others than the options say
        recorded = {**vars(opt), **size, "amp": str(dtype).removeprefix("torch."), "training_images": digest(images, before.get("training_images"))}
        step, skipped, best = 0, 0, None
        with world.main_first():
            run.check_options(plain_options(recorded), options.may_change, plain_options(options.defaults()), digests=frozenset({"training_images"}))
            if state := run.load_state():
                step, skipped, best = (state.values[k] for k in ("step", "skipped", "best_held_out_nll"))
                restore(model, average, optimizer, state.tensors)
            run.truncate_stats(step)
        if world.main:
            tqdm.write(f"{opt.name}: on {device_name(device)}, in {recorded['amp']}" + (f", continuing after step {step} of {total}" if step else ""))
        values = {"config": model.config, "white_level": opt.white_level, "options": plain_options(recorded)}

        def save() -> None:
            run.save_state(step, training_tensors(model, average, optimizer), {"step": step, "skipped": skipped, "best_held_out_nll": best})
            run.save_weights("last", "stage1", average.state_dict(), {**values, "step": step})

        board = Board(run.path / "tensorboard", step, enabled=world.main)
        bar = tqdm(total=total, initial=step, desc=opt.name, unit="step", disable=None if world.main else True)
        trained, stopping = None, False
        while step < total and not stopping:
            phase = "mu" if step < opt.mu_steps else "sigma" if step < opt.mu_steps + opt.sigma_steps else "joint"
            if phase != trained:
                model.dbsn.requires_grad_(phase != "sigma")
                model.cov_head.requires_grad_(phase != "mu")
                model.noise_estimator.requires_grad_(phase != "mu")
                parallel, trained = world.wrap(model), phase
            lr = learning_rate(step, total, opt.lr, opt.schedule, opt.warmup, opt.lr_decay)
            for group in optimizer.param_groups:
                group["lr"] = lr

            samples = world.share(step * opt.batch_size, opt.batch_size)
            y, where = source.crops(samples)  # B,C,P,P
            if redraw:
                y = noise.add(y, generators(device, opt.seed, NOISE, samples))

            optimizer.zero_grad()
            p = parallel(y)
            terms = objective(p, y, phase, loss_name, opt.quantile)
            loss = sum(terms.values())
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), opt.clip_grad or float("inf"))
            if world.any(not (torch.isfinite(loss) and torch.isfinite(norm)), device):
                names = ", ".join(sorted({images.files[k].name for k in where.image}))
                shown = ", ".join(f"{k} {v.item():g}" for k, v in terms.items())
                problem = f"step {step + 1}: loss or gradient is not finite ({shown}, gradient norm {norm.item():g}); crops of {names}"
                skipped += 1
                if opt.on_nonfinite == "stop" or skipped > MAX_SKIPPED:
                    raise RunError(f"{problem}; try a lower --lr" + (f" ({skipped} steps skipped)" if skipped > 1 else ""))
                tqdm.write(f"warning: {problem}; step skipped")
            else:
                optimizer.step()
                update_average(average, model, step, opt.ema)
            step += 1
            bar.update()

            if step % opt.log_every == 0 or step == total:
                level = 255 * noise_level(p.cov_n).mean()
                row = {"step": step, "phase": phase, "lr": lr} | world.mean({"loss": loss, **terms, "grad_norm": norm, "noise_level": level})
                run.append_stats(row)
                board.scalars(row, step)
                rate, waited = bar.format_dict["rate"] or 0.0, source.share_waited()
                board.scalars({"images_per_second": rate * opt.batch_size, "share_waiting_for_data": waited}, step)
                shown = {"level": f"{row['noise_level']:.1f}", "lr": f"{lr:.1e}", "im_s": f"{rate * opt.batch_size:.1f}", "wait": f"{waited:.0%}"}
                bar.set_postfix(loss=f"{row['loss']:.4f}", **shown)
            if world.main and (step % opt.val_every == 0 or step == total):
                row = {"step": step} | evaluate(average, held_out_crops, val, noise, opt.seed)
                if len(row) > 1:
                    run.append_stats(row)
                    board.scalars(row, step)
                if held_out_crops is not None:
                    if best is None or row["held_out_nll"] < best:
                        best = row["held_out_nll"]
                        run.save_weights("best", "stage1", average.state_dict(), {**values, "step": step})
                    show_panel(board, average, held_out_crops[:4], step)
            if step % opt.save_every == 0:
                save()
            out_of_time = opt.max_minutes is not None and time.monotonic() - started > 60 * opt.max_minutes
            stopping = world.any(stop.requested or out_of_time, device)
        save()
        bar.close()
        board.close()

    if world.main:
        print(
            f"{opt.name}: {step} of {total} steps done; weights in {run.path / 'last.safetensors'}"
            + ("" if step == total else "; run the same command to continue")
        )
    return EXIT_RESUME if stop.requested and step < total else 0


def starting_model(opt, channels: int) -> BlindSpotDenoiser:
    """A model from scratch, or with the weights of --start-from, whose size then counts: D-BSN's, and of the heads those that have the same meaning."""
    size = dict(width=opt.width, blocks=opt.blocks, mdc=opt.mdc)
    source = load_model(opt.start_from, "cpu", opt.checkpoints_dir) if opt.start_from else None
    if source:
        if source.stage != 1 or source.channels != channels:
            raise UsageError(
                f"--start-from {source.file}: needed here is a stage-1 checkpoint for {channels} channels, this one is stage {source.stage} for {source.channels}"
            )
        size = {name: source.config[name] for name in size}
    torch.manual_seed(int(hashed(opt.seed, WEIGHTS) >> np.uint64(1)))
    model = BlindSpotDenoiser(channels, opt.noise, **size, head="total" if opt.loss == "envelope" else "mu", estimator=opt.estimator)
    if source:
        model.dbsn.load_state_dict(source.dbsn.state_dict())
        if (source.noise, source.head) == (model.noise, model.head):
            model.cov_head.load_state_dict(source.cov_head.state_dict())
            if source.estimator == model.estimator:
                model.noise_estimator.load_state_dict(source.noise_estimator.state_dict())
    return model


def held_out_batch(held_out: Images | ImageFiles, noise: NoiseModel | None, patch: int, seed: int) -> Tensor:
    """Noisy crops (B,C,P,P) that are never trained on, the same at every evaluation; their noise is drawn once."""
    pool = held_out.pool()
    if noise:
        pool = add_noise_once(pool, noise, seed, HELD_OUT)
    return pool.crops(draw_crops(pool.sizes, np.arange(HELD_OUT_CROPS), patch, seed), patch)


@torch.no_grad()
def evaluate(model: BlindSpotDenoiser, held_out: Tensor | None, val: Images | None, noise: NoiseModel | None, seed: int) -> dict[str, float]:
    """Held-out likelihood (what models are chosen by) and, for watching only, PSNR on clean images made noisy."""
    row = {}
    if held_out is not None:
        row["held_out_nll"] = nll_of(model, held_out)
    if val is not None and noise is not None:
        pool = val.pool()
        found = {"val_psnr_mu": [], "val_psnr": []}
        for k in range(len(pool)):
            x = pool.image(k)
            out = denoise(model, noise.add(x, [generator("cpu", seed, VALIDATION, k)]))
            for name, image in (("val_psnr_mu", out.mu), ("val_psnr", out.image)):
                found[name].append(-10 * (image.clamp(0, 1) - x).square().mean().log10().item())
        row |= {name: float(np.mean(values)) for name, values in found.items()}
    return row


def nll_of(model: BlindSpotDenoiser, y: Tensor, at_once: int = 8) -> float:
    """Exact negative log-likelihood in nats per pixel of noisy images (B,C,P,P)."""
    parts = [nll(part, (p := model(part)).mu, p.cov_total).mean((1, 2, 3)) for part in y.split(at_once)]
    return torch.cat(parts).mean().item()


@torch.no_grad()
def show_panel(board: Board, model: BlindSpotDenoiser, y: Tensor, step: int) -> None:
    """noisy | mu | posterior mean | its standard deviation, brightened eightfold."""
    p = model(y)
    x = posterior(y, p)
    board.panel("held out: noisy, mu, posterior, std x8", [y, p.mu, x.mean, 8 * x.std], step)


if __name__ == "__main__":
    run_script(main)
