"""This study measures whether the estimated noise is right.

It trains small stage-1 models in every way that the covariances can be trained. Each is measured against the truth.

    python scripts/estimator_study.py                                   train and measure
    python scripts/estimator_study.py --noises awgn --steps 900         a part of it, into the same file
    python scripts/estimator_study.py --blind gray-awgn-blind --data bsd68
                                                                        measure a model of a range of levels, on all
                                                                        of bsd68
    python scripts/estimator_study.py --render                          tables and figure of docs/estimator.md from
                                                                        what was measured

The same command goes on where it stopped.

Models of one noise and length differ in the loss alone: same images, noise, crops, first weights and number of steps.
They are measured on photographs of --data that none is trained on; no published test set is touched, because a
default chosen on test images would be fitted to them (--blind chooses nothing). Each model and length is one row of
the results:

    psnr            dB, mean over the photographs, of the noisy input, mu, the posterior mean, and the posterior mean
                    with the oracle split: same mu and same predictive covariance V, but the true Sigma_n where the
                    estimate stood; hg: the true one at mu, which is what CNN_est sees (at the clean pixel's own
                    intensity the truth would give the pixel away)
    level           root mean square of the estimated standard deviation over a photograph, mean over the photographs;
                    true_level the same of the truth
    error           how far the estimate is from the truth: awgn |s / sigma - 1|; hg the mean over pixels of
                    |s(x) / sigma(x) - 1|; mg |S - Sigma|_F / |Sigma|_F. Mean over the photographs; largest_error is
                    that of the worst one, and floor the error that the true function of the intensity makes at mu
                    instead of x (hg; 0 for the others)
    curve           hg: standard deviation at some intensities, the one that CNN_est gives and the true one

Levels and intensities are in 0..255 units.
"""

from __future__ import annotations

import json
import re
import sys
from argparse import ArgumentDefaultsHelpFormatter, Namespace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules, from wherever this is run

import train_dbsn
from data.images import read_image, to_float
from data.sets import find_images
from models import BlindSpotDenoiser, gaussian, load_model, noise_level, posterior_mean
from models.gaussian import Covariance
from models.inference import denoise_batch
from models.noise import NOISES as MODELS
from models.noise import NoiseModel, ResidualEstimator
from models.noise.awgn import Awgn
from options.base import Parser, noise_of, number
from options.stage1 import Stage1Options
from utils.device import choose_device, choose_dtype
from utils.errors import RunError, UsageError, run_script
from utils.figures import write_figure
from utils.files import atomic_write_json, atomic_write_text
from utils.metrics import psnr
from utils.random import Stream, generator, permutation

NOISES = {
    "awgn": "--noise awgn --sigma 25 --mode gray",
    "hg": "--noise hg --alpha 40 --delta 10 --mode gray",
    "mg": "--noise mg --sigma 75 --mode color",
}
TITLES = {"awgn": "gray AWGN 25", "hg": "gray HG 40, 10", "mg": "colour MG 75"}
METHODS = {
    "envelope-0.05": "--sigma-n envelope --quantile 0.05",
    "constrained": "--sigma-n constrained",
    "exact": "--sigma-n exact",
    "reward": "--sigma-n reward",
    "split": "--sigma-n split",
    "envelope-0.10": "--sigma-n envelope --quantile 0.10",
    "envelope-0.02": "--sigma-n envelope --quantile 0.02",
    "exact-phases": "--sigma-n exact",
    "constrained-phases": "--sigma-n constrained",
    # the run of envelope-0.05, with the estimator that is not learned in the place of CNN_est
    "residual": "--sigma-n envelope --quantile 0.05",
}
DRAWN = ("constrained", "reward", "envelope-0.05")  # the figure's curves
INTENSITIES = torch.linspace(0, 1, 52)
BLIND_LEVELS = range(5, 60, 5)


def main(argv: list[str] | None = None) -> int:
    opt = parse(argv)
    if not (opt.render or opt.blind):
        return run(opt)
    if opt.blind:
        results, files = load(opt), find_images(opt.data, opt.data_root, "--data")
        results["blind"] = {
            "checkpoint": opt.blind,
            "seed": opt.seed,
            "images": [file.name for file in files],
            "rows": measure_blind(opt, files),
        }
        save(opt, results)
    if opt.render:
        results = load(opt)
        draw(results, opt.doc.with_suffix(".png"))
        atomic_write_text(opt.doc, render(results, opt.doc.read_text()))
    return 0


def parse(argv: list[str] | None) -> Namespace:
    description = "Compare the ways of training the covariances with the oracle that is told the noise."
    parser = Parser(
        prog="scripts/estimator_study.py",
        description=description,
        formatter_class=ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--noises", nargs="+", choices=NOISES, default=list(NOISES), help="in this order")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        help="in this order; -phases: a third of the steps in each phase",
    )
    parser.add_argument("--steps", nargs="+", type=number(int, 3), default=[900, 2700], help="lengths of training")
    parser.add_argument("--data", nargs="+", default=["bsd432"], metavar="IMAGES", help="clean colour photographs")
    parser.add_argument(
        "--data-root",
        type=Path,
        default=None,
        help="folder of the named image sets; default: $DBSN_DATA, then datasets/",
    )
    parser.add_argument(
        "--evaluation",
        type=number(int, 1),
        default=12,
        metavar="N",
        help="photographs to measure on, drawn by the seed, never trained on",
    )
    parser.add_argument("--width", type=number(int, 1), default=24, help="channels of D-BSN")
    parser.add_argument("--blocks", type=number(int, 0), default=3, help="MDC blocks in each of the two branches")
    parser.add_argument("--patch-size", type=number(int, 8), default=48, help="side of a crop in pixels")
    parser.add_argument("--batch-size", type=number(int, 1), default=8, help="crops in a step")
    parser.add_argument("--lr", type=number(float, above=0, high=1), default=2e-3, help="highest learning rate")
    parser.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0, help="of everything random")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one"
    )
    parser.add_argument("--amp", choices=("auto", "bf16", "off"), default="auto", help="as in train_dbsn.py")
    parser.add_argument(
        "--checkpoints-dir", type=Path, default=Path("checkpoints/study"), help="folder of the run folders"
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("results/estimator-study.json"),
        metavar="FILE",
        help="the results, read and written",
    )
    parser.add_argument(
        "--blind",
        default=None,
        metavar="CHECKPOINT",
        help="no training: measure this gray AWGN model at levels 5 to 55, on all of --data",
    )
    parser.add_argument(
        "--render", action="store_true", help="no training: write the tables into --doc and the figure beside it"
    )
    parser.add_argument(
        "--doc", type=Path, default=Path("docs/estimator.md"), metavar="FILE", help="page that --render fills in"
    )
    return parser.parse_args(argv)


def run(opt: Namespace) -> int:
    """Trains and measures what the results do not have yet. Gives the exit code.

    The results are written after each model.
    """
    training, evaluation = photographs(opt)
    results = load(opt, evaluation)
    wanted = [(noise, method, steps) for noise in opt.noises for method in opt.methods for steps in opt.steps]
    for key in wanted:
        if key in {(row["noise"], row["method"], row["steps"]) for row in results["rows"]}:
            continue
        argv = training_argv(*key, opt, training)
        if code := train_dbsn.main(argv):
            return code
        results["rows"].append(dict(zip(("noise", "method", "steps"), key)) | measure(argv, key[1], opt, evaluation))
        save(opt, results)
        tqdm.write(
            " ".join(map(str, key)) + f": {json.dumps({k: v for k, v in results['rows'][-1].items() if k != 'curve'})}"
        )
    return 0


def photographs(opt: Namespace) -> tuple[list[Path], list[Path]]:
    """Files to train on and files to measure on."""
    files = find_images(opt.data, opt.data_root, "--data")
    if len(files) <= opt.evaluation:
        raise UsageError(
            f"--evaluation {opt.evaluation} leaves nothing of the {len(files)} images of --data to train on"
        )
    # by the seed alone, as the committed results were made: no training draws by that key
    chosen = set(permutation(len(files), opt.seed)[: opt.evaluation].tolist())
    return [f for k, f in enumerate(files) if k not in chosen], [files[k] for k in sorted(chosen)]


def training_argv(noise: str, method: str, steps: int, opt: Namespace, files: list[Path]) -> list[str]:
    """Command line of train_dbsn.py.

    Every photograph is trained on and the last weights are measured: nothing is chosen by a held-out score.
    """
    third = steps // 3 if method.endswith("-phases") else 0
    run = "envelope-0.05" if method == "residual" else method
    line = f"--name {noise}-{run}-{steps} {NOISES[noise]} {METHODS[method]}"
    line += f" --mu-steps {third} --sigma-steps {third} --steps {steps - 2 * third}"
    line += f" --noise-draw fixed --held-out 0 --width {opt.width} --blocks {opt.blocks} --mdc residual --units white"
    line += f" --patch-size {opt.patch_size}"
    line += f" --batch-size {opt.batch_size} --optimizer adam --lr {opt.lr}"
    line += f" --seed {opt.seed} --device {opt.device} --amp {opt.amp}"
    return [*line.split(), "--checkpoints-dir", str(opt.checkpoints_dir), "--clean", *map(str, files)]


# ------------------------------------------------------------------------------------------- measuring


def measure(argv: list[str], method: str, opt: Namespace, files: list[Path]) -> dict:
    """The figures of the model that train_dbsn.py left for this command line: see the head of this file."""
    trained = Stage1Options().parse(argv)
    device, noise = choose_device(opt.device), noise_of(trained)
    model = load_model(trained.name, device, opt.checkpoints_dir)
    model.dtype = choose_dtype(opt.amp, device)
    if method == "residual":
        model.noise_estimator, model.estimator = (
            ResidualEstimator(model.channels, MODELS[model.noise]).to(device),
            "residual",
        )
    found = [
        measure_image(model, to_float(read_image(file, mode=trained.mode)).transpose(2, 0, 1), noise)
        for file in tqdm(files, leave=False, disable=None)
    ]
    row = {
        "psnr": {name: float(np.mean([f["psnr"][name] for f in found])) for name in found[0]["psnr"]},
        **{name: float(np.mean([f[name] for f in found])) for name in ("true_level", "level", "error", "floor")},
        "largest_error": max(f["error"] for f in found),
    }
    return row | ({"curve": curve(model, noise)} if not noise.image_wide and method != "residual" else {})


@torch.no_grad()
def measure_image(model: BlindSpotDenoiser, x: np.ndarray, noise: NoiseModel) -> dict:
    """PSNR in dB, level and error on one clean image x (C,H,W), 0..1, with the published test noise."""
    device = next(model.parameters()).device
    clean = torch.from_numpy(np.ascontiguousarray(x, np.float32))[None].to(device)  # 1,C,H,W
    y = torch.from_numpy(noise.published(x.astype(np.float64)).astype(np.float32))[None].to(device)
    p = model(y)
    truth, at_mu = (noise.covariance(image, torch.zeros(1, 2)) for image in (clean, p.mu))
    oracle = gaussian.posterior_mean(y, p.mu, gaussian.excess(p.cov_total, at_mu), at_mu)
    images = {"noisy": y, "mu": p.mu, "posterior": posterior_mean(y, p), "oracle": oracle}
    decibels = {
        name: psnr(x, (image if name == "noisy" else image.clamp(0, 1))[0].cpu().numpy())
        for name, image in images.items()
    }
    levels = {
        name: 255 * noise_level(cov).square().mean().sqrt().item()
        for name, cov in (("true_level", truth), ("level", p.cov_n))
    }
    return {"psnr": decibels, **levels, "error": relative_error(p.cov_n, truth), "floor": relative_error(at_mu, truth)}


def relative_error(estimate: Covariance, truth: Covariance) -> float:
    """The error of an estimate.

    It is |S - Sigma|_F / |Sigma|_F of image-wide matrices. Of levels, image-wide or a map (N,1,H,W), it is the mean of
    |s / sigma - 1|.
    """
    if isinstance(truth, gaussian.Full):
        weight = torch.tensor(
            [1.0 if i == j else 2.0 for i, j in gaussian.triangle(truth.channels)], device=truth.factor.device
        ).view(1, -1, 1, 1)
        squared = lambda entries: (weight * entries.square()).sum()  # noqa: E731
        return (squared(estimate.entries() - truth.entries()) / squared(truth.entries())).sqrt().item()
    return (noise_level(estimate) / noise_level(truth) - 1).abs().mean().item()


@torch.no_grad()
def curve(model: BlindSpotDenoiser, noise: NoiseModel) -> dict[str, list[float]]:
    """HG: estimated and true standard deviation where the image has a given intensity.

    That is what CNN_est sees there.
    """
    ramp = INTENSITIES.view(1, 1, 1, -1).expand(-1, model.channels, -1, -1).to(next(model.parameters()).device)
    levels = lambda cov: [round(255 * v, 3) for v in noise_level(cov).flatten().tolist()]  # noqa: E731
    estimated = levels(model.noise_estimator.covariance(model.noise_estimator.estimate(ramp), ramp))
    return {
        "intensity": [round(255 * v, 3) for v in INTENSITIES.tolist()],
        "estimated": estimated,
        "true": levels(noise.covariance(ramp, torch.zeros(1, 2))),
    }


def measure_blind(opt: Namespace, files: list[Path]) -> list[dict]:
    """The levels that a gray AWGN model of a range of levels finds.

    Each photograph is made noisy with each level.

    Every photograph and level has a draw of its own. The published draw is one for all pictures of a size: what
    chance has put into it does not average out over them, and would look like an error of the estimator.
    """
    device = choose_device(opt.device)
    model = load_model(opt.blind, device)
    if model.stage != 1 or model.channels != 1 or model.noise != "awgn":
        raise UsageError(f"--blind {opt.blind}: a gray AWGN model of stage 1 is needed")
    model.dtype = choose_dtype(opt.amp, device)
    rows = []
    for level in tqdm(BLIND_LEVELS, desc="levels", disable=None):
        noise, estimated = Awgn(sigma=(level / 255, level / 255)), []
        for k, file in enumerate(files):
            x = torch.from_numpy(to_float(read_image(file, mode="gray")).transpose(2, 0, 1))[None]
            y = noise.add(x, [generator("cpu", opt.seed, Stream.NOISE, level, k)])
            estimated.append(255 * rms(denoise_batch(model, y).noise_level))
        rows.append({"level": level, "estimated": estimated})
    return rows


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


# ------------------------------------------------------------------------------------------- - results


def load(opt: Namespace, evaluation: list[Path] | None = None) -> dict:
    """What --json holds.

    evaluation: for a run that will add to it. It must have been made with the same settings, and may be missing.
    """
    if evaluation is None:
        try:
            return json.loads(opt.json.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"--json {opt.json} cannot be read ({error}); run the study first") from error
    settings = {
        "data": [Path(spec).name for spec in opt.data],
        "evaluation": [file.name for file in evaluation],
        **{name: getattr(opt, name) for name in ("seed", "width", "blocks", "patch_size", "batch_size", "lr")},
        "mdc": "residual",
        "noise_draw": "fixed",
        "dtype": str(choose_dtype(opt.amp, choose_device(opt.device))).removeprefix("torch."),
        "torch": torch.__version__,
    }
    if not opt.json.exists():
        return {"settings": settings, "rows": []}
    results = load(opt)
    if differing := [f"{k} {v}, now {settings[k]}" for k, v in results["settings"].items() if v != settings[k]]:
        raise UsageError(
            f"--json {opt.json} was made with other settings ({'; '.join(differing)}): name another file, "
            "or use the same ones"
        )
    return results


def save(opt: Namespace, results: dict) -> None:
    try:
        opt.json.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--json: cannot create the folder {opt.json.parent} ({error.strerror})") from error
    atomic_write_json(opt.json, results)


def render(results: dict, page: str) -> str:
    """The page with the text between each pair of markers replaced by what `tables` makes.

    The markers are <!-- NAME --> and <!-- /NAME -->.
    """
    for name, text in tables(results).items():
        page, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, text=text: m[1] + text + m[2], page, flags=re.DOTALL
        )
        if count != 1:
            raise UsageError(
                f"--doc: the marker <!-- {name} --> .. <!-- /{name} --> is there {count} times; it is needed once"
            )
    return page


def tables(results: dict) -> dict[str, str]:
    """A Markdown table for each noise that was measured, and for the blind model; each ends with a line break."""
    found = {}
    for noise, title in TITLES.items():
        rows = sorted(
            (r for r in results["rows"] if r["noise"] == noise),
            key=lambda r: (r["steps"], list(METHODS).index(r["method"])),
        )
        if not rows:
            continue
        head = (
            f"| {title}: training | steps | mu | posterior | oracle split | lost | "
            f"level (true {rows[0]['true_level']:.1f}) | error | largest error |"
        )
        head += " floor |" * (noise == "hg")
        lines = [head, "|---" * (head.count("|") - 1) + "|"]
        for r in rows:
            mu, x, oracle = (r["psnr"][name] for name in ("mu", "posterior", "oracle"))
            cells = (
                f"{r['steps']} | {mu:.2f} | {x:.2f} | {oracle:.2f} | {oracle - x:.2f} | {r['level']:.1f} | "
                f"{r['error']:.1%} | {r['largest_error']:.1%}"
            )
            lines.append(f"| {r['method']} | {cells} |" + f" {r['floor']:.1%} |" * (noise == "hg"))
        found[noise] = "\n".join(lines) + "\n"
    if "blind" in results:
        lines = [
            "| true level | mean estimate | lowest | highest | mean relative error | within 5% |",
            "|---|---|---|---|---|---|",
        ]
        for r in results["blind"]["rows"]:
            s, level = np.array(r["estimated"]), r["level"]
            error = np.abs(s / level - 1)
            lines.append(
                f"| {level} | {s.mean():.1f} | {s.min():.1f} | {s.max():.1f} | {error.mean():.1%} | "
                f"{(error <= 0.05).sum()} of {len(s)} |"
            )
        found["blind"] = "\n".join(lines) + "\n"
    return found


def draw(results: dict, file: Path) -> None:
    """The figure: HG's level as a function of intensity, and the blind model's levels where it has been measured."""
    from matplotlib.figure import Figure  # not pyplot: no window, nothing global

    panels = [draw_curves] + [draw_blind] * ("blind" in results)
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0]):
        panel(axes, results)
        axes.grid(alpha=0.3)
        axes.legend()
    write_figure(file, figure)


def draw_curves(axes, results: dict) -> None:
    """HG: true and estimated standard deviation against intensity.

    It shows the methods in DRAWN at the longest training that all of them have.
    """
    rows = {(r["method"], r["steps"]): r for r in results["rows"] if r["noise"] == "hg"}
    shared = set.intersection(*({steps for method, steps in rows if method == name} for name in DRAWN))
    if not shared:
        raise UsageError(f"--render: the figure needs HG rows of {', '.join(DRAWN)} at one length")
    steps = max(shared)
    for name in DRAWN:
        axes.plot(rows[name, steps]["curve"]["intensity"], rows[name, steps]["curve"]["estimated"], label=name)
    axes.plot(rows[name, steps]["curve"]["intensity"], rows[name, steps]["curve"]["true"], "k--", label="true")
    axes.set(
        title=f"{TITLES['hg']}, {steps} steps",
        xlabel="intensity",
        ylabel="standard deviation of the noise",
        xlim=(0, 255),
        ylim=(0, None),
    )


def draw_blind(axes, results: dict) -> None:
    """Gray AWGN of a range of levels: the estimate in each photograph against the true level.

    The line is a perfect one.
    """
    rows = results["blind"]["rows"]
    ends = [rows[0]["level"], rows[-1]["level"]]
    axes.plot(ends, ends, "k--", label="true")
    axes.scatter(
        [r["level"] for r in rows for _ in r["estimated"]],
        [s for r in rows for s in r["estimated"]],
        s=12,
        alpha=0.6,
        label="one photograph",
    )
    axes.set(title=f"blind gray AWGN, {ends[0]} to {ends[1]}", xlabel="true level", ylabel="estimated level")


if __name__ == "__main__":
    run_script(main)
