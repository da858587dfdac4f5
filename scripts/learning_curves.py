"""What makes the networks learn more: trains variants of one small model of each stage and compares them.

    python scripts/learning_curves.py --json results/learning-curves.json --plot docs/learning-curves.png \\
        --table docs/ablations.md

Gray, AWGN 25 drawn afresh, on bsd432 less twelve photographs, which the PSNR is measured on; no test image is seen.
Stage 1: 32 channels, 3 + 3 blocks. Stage 2: 64 channels, pairs alone, made with the level that released weights find.
Each variant differs from its stage's base in what its name says. Seconds depend on the machine and on what else it
does, so variants are compared by step, by pixels seen and by floating-point operations. Run it again to continue:
finished variants are kept.

--time measures what a step costs here in time of a processor core, for every variant without such a figure. All
take about ten minutes, best with OMP_NUM_THREADS=1. The table and the plot then have core-hours too.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules, from wherever this is run

import train_dbsn
import train_distill
from data.sets import find_images
from models import MWCNN
from models.dbsn import DBSN
from options.base import Parser
from utils.errors import UsageError, run_script
from utils.figures import write_figure
from utils.files import atomic_write_json, atomic_write_text

VALIDATION_IMAGES = 12
TIME = "core_seconds_per_step"
TIMED = 5, 35  # steps of the two runs whose difference gives what a step costs
START, END = "<!-- learning curves: start -->", "<!-- learning curves: end -->"

TEACHER = Path(__file__).resolve().parents[1] / "checkpoints" / "gray-awgn-blind.safetensors"
FIXED = "--noise awgn --sigma 25 --device cpu"
FIXED2 = ["--teacher", str(TEACHER), "--noisy-share", "0"]
BASE = dict(mdc="residual", units="white", optimizer="adam", lr=2e-3, warmup=50, batch_size=8, patch_size=48)
BASE |= dict(steps=400, seed=0, width=32, blocks=3, noise_draw="fresh")
STUDENT = dict(student_width=64, optimizer="adam", lr=2e-3, warmup=50, batch_size=8, patch_size=96, steps=400, seed=0)
STUDENT |= dict(noise_draw="fresh", student_blocks="plain")

# name -> what differs from BASE
VARIANTS = {
    "base": {},
    "muon": dict(optimizer="muon"),
    "1200 steps": dict(steps=1200, warmup=150),
    "muon, 1200 steps": dict(optimizer="muon", steps=1200, warmup=150),
    "seed 1": dict(seed=1),
    "muon, seed 1": dict(optimizer="muon", seed=1),
    "lr 1e-3": dict(lr=1e-3),
    "lr 4e-3": dict(lr=4e-3),
    "muon, lr 1e-3": dict(optimizer="muon", lr=1e-3),
    "muon, lr 5e-3": dict(optimizer="muon", lr=5e-3),
    "muon, lr 1e-2": dict(optimizer="muon", lr=1e-2),
    "muon, lr 5e-3, 1200 steps": dict(optimizer="muon", lr=5e-3, steps=1200, warmup=150),
    "muon, lr 5e-3, fixed draw, 1200 steps": dict(
        optimizer="muon", lr=5e-3, steps=1200, warmup=150, noise_draw="fixed"
    ),
    # about as many operations as 1200 steps of the base
    "muon, lr 5e-3, width 48, 560 steps": dict(optimizer="muon", lr=5e-3, steps=560, warmup=70, width=48),
    "muon, lr 5e-3, width 64, 300 steps": dict(optimizer="muon", lr=5e-3, steps=300, warmup=38, width=64),
    "muon, lr 5e-3, blocks 5, 760 steps": dict(optimizer="muon", lr=5e-3, steps=760, warmup=95, blocks=5),
    # four times as many
    "muon, lr 5e-3, 4800 steps": dict(optimizer="muon", lr=5e-3, steps=4800, warmup=600),
    "muon, lr 5e-3, width 48, 2240 steps": dict(optimizer="muon", lr=5e-3, steps=2240, warmup=280, width=48),
    "muon, lr 5e-3, width 64, 1200 steps": dict(optimizer="muon", lr=5e-3, steps=1200, warmup=150, width=64),
    "muon, lr 5e-3, blocks 5, 3040 steps": dict(optimizer="muon", lr=5e-3, steps=3040, warmup=380, blocks=5),
    "muon, lr 5e-3, units of noise": dict(optimizer="muon", lr=5e-3, units="noise"),
    "muon, lr 5e-3, units of noise, 1200 steps": dict(optimizer="muon", lr=5e-3, steps=1200, warmup=150, units="noise"),
    "release": dict(mdc="release"),
    "muon, release": dict(optimizer="muon", mdc="release"),
    "paper": dict(mdc="paper"),
    "muon, paper": dict(optimizer="muon", mdc="paper"),
    "muon, batch 4": dict(optimizer="muon", batch_size=4, steps=800, warmup=100),
    "muon, batch 16": dict(optimizer="muon", batch_size=16, steps=200, warmup=25),
    "muon, patch 32": dict(optimizer="muon", patch_size=32, batch_size=18),
    "muon, patch 96": dict(optimizer="muon", patch_size=96, batch_size=2),
}
# .. and from STUDENT
STUDENTS = {
    "student": {},
    "student, lr 5e-4": dict(lr=5e-4),
    "student, muon": dict(optimizer="muon"),
    "student, muon, lr 4e-3": dict(optimizer="muon", lr=4e-3),
    "student, muon, 1200 steps": dict(optimizer="muon", steps=1200, warmup=150),
    "student, muon, 2400 steps of batch 4": dict(optimizer="muon", steps=2400, warmup=300, batch_size=4),
    "student, muon, width 48, 2000 steps": dict(optimizer="muon", student_width=48, steps=2000, warmup=150),
    "student, muon, width 96, 600 steps": dict(optimizer="muon", student_width=96, steps=600, warmup=75),
    "student, muon, residual": dict(optimizer="muon", student_blocks="residual"),
    "student, muon, residual, 1200 steps": dict(optimizer="muon", student_blocks="residual", steps=1200, warmup=150),
    "student, muon, residual, 4800 steps": dict(optimizer="muon", student_blocks="residual", steps=4800, warmup=600),
    # about as many operations
    "student, muon, residual, width 48, 8200 steps": dict(
        optimizer="muon", student_blocks="residual", student_width=48, steps=8200, warmup=1025
    ),
    "student, muon, residual, width 96, 2250 steps": dict(
        optimizer="muon", student_blocks="residual", student_width=96, steps=2250, warmup=281
    ),
}
ALL = VARIANTS | STUDENTS


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="scripts/learning_curves.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--variants", nargs="+", choices=ALL, default=None, metavar="NAME", help=f"of {', '.join(ALL)}; default: all"
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        default=None,
        help="folder of the named image sets; default: $DBSN_DATA, then datasets/",
    )
    parser.add_argument("--checkpoints-dir", type=Path, default=Path("checkpoints/curves"), help="where the runs are")
    parser.add_argument(
        "--json",
        type=Path,
        required=True,
        metavar="FILE",
        help="all that was measured; variants that it has already are kept",
    )
    parser.add_argument("--plot", type=Path, default=None, metavar="FILE")
    parser.add_argument(
        "--table", type=Path, default=None, metavar="FILE", help="write the table into this file, between its markers"
    )
    parser.add_argument(
        "--time", action="store_true", help="measure what a step of each variant costs on this machine's processor"
    )
    opt = parser.parse_args(argv)
    for file in (opt.json, opt.plot, opt.table):
        if file is not None and not file.parent.is_dir():
            raise UsageError(f"{file}: there is no folder {file.parent}")

    rows = json.loads(opt.json.read_text()) if opt.json.exists() else []
    for name in opt.variants or ALL:
        if any(row["name"] == name for row in rows):
            continue
        rows.append(train(name, opt.data_root, opt.checkpoints_dir))
        rows.sort(key=lambda row: list(ALL).index(row["name"]))
        atomic_write_json(opt.json, rows)
    if opt.time:
        seconds = {what_a_step_is(row): row[TIME] for row in rows if TIME in row}
        for row in rows:
            key = what_a_step_is(row)
            if key not in seconds:
                seconds[key] = core_seconds(row, opt.data_root)
            row[TIME] = seconds[key]
        atomic_write_json(opt.json, rows)
    if opt.table:
        write_table(opt.table, rows)
    if opt.plot:
        plot(opt.plot, rows)
    return 0


def train(name: str, data_root: Path | None, folder: Path) -> dict:
    """Trains a variant, or continues it, and gives its row of the JSON file."""
    base = STUDENT if name in STUDENTS else BASE
    options = base | ALL[name]
    files = find_images("bsd432", data_root, "bsd432:")
    val = files[:: len(files) // VALIDATION_IMAGES][:VALIDATION_IMAGES]
    pixels, base_pixels = (o["batch_size"] * o["patch_size"] ** 2 for o in (options, base))
    run = name.replace(", ", "-").replace(" ", "-")
    # three times in a run as long as the base's
    every = ["--val", *map(str, val), "--val-every", str(-(-base["steps"] // 3) * base_pixels // pixels)]
    run_training(run, folder, options, [f for f in files if f not in val], val, every)
    stats = [json.loads(line) for line in (folder / run / "stats.jsonl").read_text().splitlines()]
    parameters, flops = cost(options)
    row = {
        "name": name,
        **options,
        "parameters": parameters,
        "flops_per_pixel": flops,
        "teraflops": options["steps"] * pixels * flops / 1e12,
    }
    if name not in STUDENTS:
        row["noise_level"] = stats[-2]["noise_level"]
    return row | {"points": [{"pixels": s["step"] * pixels, **s} for s in stats if "val_psnr" in s]}


def run_training(run: str, folder: Path, options: dict, clean: list[Path], others: list[Path], more: list[str]) -> None:
    """Trains with a variant's options. others: images that are not among the clean ones."""
    argv = ["--name", run, "--checkpoints-dir", str(folder), "--clean", *map(str, clean), *FIXED.split(), *more]
    for flag, value in options.items():
        argv += [f"--{flag.replace('_', '-')}", str(value)]
    if "student_width" in options:
        # none of a batch is noisy images, but they must be named and must not be among the clean ones
        code = train_distill.main([*argv, *FIXED2, "--synthetic-noisy", *map(str, others)])
    else:
        code = train_dbsn.main(argv)
    if code:
        raise SystemExit(code)


def what_a_step_is(row: dict) -> str:
    """Equal for variants whose steps cost the same."""
    kinds = (
        "optimizer",
        "units",
        "width",
        "blocks",
        "mdc",
        "student_width",
        "student_blocks",
        "batch_size",
        "patch_size",
    )
    return str([row.get(kind) for kind in kinds])


def core_seconds(row: dict, data_root: Path | None) -> float:
    """Processor time of a step, in seconds of one core: that of a longer run less that of a shorter one."""
    options = {key: row[key] for key in (STUDENT if row["name"] in STUDENTS else BASE)}
    files = find_images("bsd432", data_root, "bsd432:")[:4]
    taken = []
    for steps in TIMED:
        with TemporaryDirectory() as folder:
            start = time.process_time()
            run_training("timed", Path(folder), options | {"steps": steps, "warmup": 0}, files[:3], files[3:], [])
            taken.append(time.process_time() - start)
    return (taken[1] - taken[0]) / (TIMED[1] - TIMED[0])


def core_hours(row: dict) -> float | None:
    """Of the whole run, on the machine that --time was given on. None where it was not."""
    return row["steps"] * row[TIME] / 3600 if TIME in row else None


def cost(options: dict) -> tuple[int, int]:
    """Parameters of D-BSN, or MWCNN, and floating-point operations of its training step for each pixel of a batch."""
    side = 48  # a multiple of 8, so that MWCNN computes no margin
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        y = torch.zeros(1, 1, side, side)
        if "student_width" in options:
            network = MWCNN(1, options["student_width"], blocks=options["student_blocks"])
            image = network(y)
        else:
            network = DBSN(1, options["width"], options["blocks"], options["mdc"])
            image, _ = network(y, path="plain")  # the counter knows no fused kernel
        image.sum().backward()
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // side**2


def table(rows: list[dict]) -> str:
    """Markdown, one line for each variant."""
    lines = [
        "| variant | steps x crops | parameters | TFLOP | core-hours | held-out NLL | mu, dB | result, dB | level |",
        "|" + "---|" * 9,
    ]
    for r in rows:
        last = r["points"][-1]
        size = f"{r['steps']} x {r['batch_size']} of {r['patch_size']}²"
        if r["name"] in STUDENTS:
            figures = f"- | - | {last['val_psnr']:.2f} | -"
        else:
            figures = (
                f"{last['held_out_nll']:.4f} | {last['val_psnr_mu']:.2f} | {last['val_psnr']:.2f} | "
                f"{r['noise_level']:.1f}"
            )
        hours = core_hours(r)
        spent = f"{r['teraflops']:.1f} | {'-' if hours is None else f'{hours:.3f}'}"
        lines.append(f"| {r['name']} | {size} | {r['parameters']:,} | {spent} | {figures} |")
    return "\n".join(lines) + "\n"


def write_table(file: Path, rows: list[dict]) -> None:
    before, found, rest = file.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise UsageError(f"{file} has no markers {START} and {END}, between which the table goes")
    atomic_write_text(file, f"{before}{START}\n{table(rows)}{END}{after}")


SIZES = ("width", "blocks", "fixed draw", "4800 steps")
LONG = "muon, lr 5e-3, 1200 steps"


def of_sizes(names: dict) -> list[str]:
    """Variants of another size, length or draw than the base's, all with one optimizer and rate."""
    return [name for name in names if any(part.startswith(SIZES) for part in name.split(", "))]


PANELS = {  # title -> (x axis, variants)
    "optimizer": (
        "step",
        ["base", "seed 1", "1200 steps", "muon", "muon, seed 1", "muon, 1200 steps", LONG],
    ),
    "learning rate": (
        "step",
        ["base", "lr 1e-3", "lr 4e-3", "muon", "muon, lr 1e-3", "muon, lr 5e-3", "muon, lr 1e-2"],
    ),
    "block form": ("TFLOP", ["base", "release", "paper", "muon", "muon, release", "muon, paper"]),
    "crops": ("megapixels seen", ["muon", "muon, batch 4", "muon, batch 16", "muon, patch 32", "muon, patch 96"]),
    "units": (
        "step",
        [n for n in VARIANTS if n.startswith("muon, lr 5e-3") and n not in of_sizes(VARIANTS)],
    ),
    "size, draw": ("core-hours", [LONG, *of_sizes(VARIANTS)]),
    "student": ("step", [n for n in STUDENTS if n not in of_sizes(STUDENTS)]),
    "size of the student": (
        "core-hours",
        ["student, muon, 1200 steps", "student, muon, residual, 1200 steps", *of_sizes(STUDENTS)],
    ),
}


COLUMNS = 2  # panels side by side
SHOWN = 4  # dB below the best point are shown


def plot(file: Path, rows: list[dict]) -> None:
    """Draws the panels that have something to compare."""
    from matplotlib.figure import Figure  # not pyplot: no window, nothing global
    from matplotlib.ticker import LogLocator, NullFormatter

    timed = all(TIME in row for row in rows)
    shown = {
        title: ("TFLOP" if unit == "core-hours" and not timed else unit, [row for row in rows if row["name"] in names])
        for title, (unit, names) in PANELS.items()
    }
    shown = {title: (unit, few) for title, (unit, few) in shown.items() if len(few) > 1}
    if not shown:
        raise UsageError("--plot compares variants, and fewer than two have been trained")
    height = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(6 * COLUMNS, 4.5 * height), layout="constrained")
    axes = figure.subplots(height, COLUMNS, sharey=True, squeeze=False).ravel()
    best = max(p["val_psnr"] for _, few in shown.values() for row in few for p in row["points"])
    for axis, (title, (unit, few)) in zip(axes, shown.items()):
        for row in few:
            points = row["points"]
            scale = {
                "step": 1,
                "megapixels seen": points[-1]["pixels"] / row["steps"] / 1e6,
                "TFLOP": row["teraflops"] / row["steps"],
                "core-hours": row.get(TIME, 0) / 3600,
            }[unit]
            x, psnr = [scale * p["step"] for p in points], [p["val_psnr"] for p in points]
            axis.plot(x, psnr, "o-", markersize=3, label=row["name"])
        axis.set(title=title, xlabel=unit, xscale="log", ylim=(best - SHOWN, best + 0.2))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    for axis in axes[len(shown) :]:
        axis.remove()
    figure.supylabel("PSNR in dB, of the posterior mean or of the student; lower points are cut off")
    write_figure(file, figure)


if __name__ == "__main__":
    run_script(main)
