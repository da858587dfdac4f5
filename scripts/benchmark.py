"""How fast the networks are, how much memory they take, and how near that is to what the machine can do.

    python scripts/benchmark.py --json benchmark.json               the paper's sizes
    python scripts/benchmark.py --network released                  those of the released weights
    python scripts/benchmark.py --json benchmark.json --quick       small sizes

The first takes minutes on a GPU, an hour on two CPU cores. The third takes seconds: it shows that everything works
and says nothing of speed.

Three tasks: "train", a step of stage 1; "infer", stage 1's posterior mean of one image; "distill", a step of stage
2's student. Each is timed on the plain path (NCHW tensors, float32, dilated convolutions, one operation after
another, as the original release computes) and on this project's. All paths of a task share weights and inputs, and
are first compared with the plain one: where they differ, the benchmark fails.

A round times every path once and rounds are repeated, so that whatever else the machine does falls on all paths
alike; medians and interquartile ranges are reported. One row for each task, path and size:

    size                tensor of images that goes in: images x height x width
    seconds, spread     median over the rounds, interquartile range
    ratio_to_plain      plain seconds / this path's seconds
    peak_memory_mb      CPU: greatest resident size of a fresh process above the one it had with the model loaded;
                        CUDA: greatest allocated size, weights included. "tiled": greatest resident size of a fresh
                        process, PyTorch and the image included
    flops_share         share of the machine's peak: the plain path's floating-point operations (forward and backward
                        where it trains) in those seconds, over what a large matrix product of the same precision
                        reaches, measured in the same run
    machine, torch      what this was measured on

Float32 convolutions may use TF32 on a GPU, on every path alike, and so may the matrix product they are compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import MWCNN, BlindSpotDenoiser, posterior_mean
from models.inference import denoise_batch
from options.base import Parser, number
from train_dbsn import objective
from utils.device import choose_device, choose_dtype, cpu_has_bf16, device_name, keep_freed_memory
from utils.errors import RunError, UsageError, run_script
from utils.files import atomic_write_json
from utils.training import COMPILE_MODES

TASKS = ("train", "infer", "distill")
PLAIN, LARGE = "plain float32", "tiled"
FLOAT, BF16 = torch.float32, torch.bfloat16

Size = tuple[int, int, int]  # images, height, width


@dataclass(frozen=True)
class Variant:
    """How a path computes. form: D-BSN's path (models/dbsn.py); of no meaning to the student."""

    form: str
    dtype: torch.dtype
    channels_last: bool = True
    compiled: str = "off"  # as --compile says
    deterministic: bool = False


DENOISER = {
    PLAIN: Variant("plain", FLOAT, channels_last=False),
    "fused float32": Variant("fused", FLOAT),
    "fused bf16": Variant("fused", BF16),
    "phases float32": Variant("phases", FLOAT),
    "phases bf16": Variant("phases", BF16),
}
DENOISER_CUDA = {
    "plain float32 deterministic": Variant("plain", FLOAT, channels_last=False, deterministic=True),
    "plain bf16 channels-last compiled": Variant("plain", BF16, compiled="on"),
    "phases bf16 deterministic": Variant("phases", BF16, deterministic=True),
    "phases bf16 compiled": Variant("phases", BF16, compiled="on"),
    "phases bf16 graphs": Variant("phases", BF16, compiled="graphs"),
}
STUDENT = {
    PLAIN: Variant("plain", FLOAT, channels_last=False),
    "channels-last float32": Variant("plain", FLOAT),
    "channels-last bf16": Variant("plain", BF16),
}
STUDENT_CUDA = {
    "channels-last bf16 compiled": Variant("plain", BF16, compiled="on"),
    "channels-last bf16 graphs": Variant("plain", BF16, compiled="graphs"),
}


def variants_of(task: str, device_type: str) -> dict[str, Variant]:
    """The paths to measure. A CPU without bfloat16 leaves its paths out."""
    common, cuda = (STUDENT, STUDENT_CUDA) if task == "distill" else (DENOISER, DENOISER_CUDA)
    if device_type == "cuda":
        return common | cuda
    return {name: variant for name, variant in common.items() if variant.dtype == FLOAT or cpu_has_bf16()}


@dataclass(frozen=True)
class Scale:
    """Sizes of networks, images and repetitions."""

    width: int
    blocks: int
    student_width: int
    sizes: dict[str, Size]
    check: Size  # what paths are compared on, on the CPU: sides that no dilation divides
    scaling: dict[str, tuple[Size, ...]]
    large_side: int
    matrix: int
    rounds: int
    mdc: str = "release"
    student_blocks: str = "plain"


def scale_of(quick: bool, device_type: str, network: str = "published") -> Scale:
    """network: "published", the paper's sizes, or "released", those of the released weights."""
    cuda = device_type == "cuda"
    if quick:
        sizes: dict[str, Size] = {"train": (2, 32, 32), "infer": (1, 49, 65), "distill": (2, 32, 32)}
        scaling: dict[str, tuple[Size, ...]] = {
            "infer": ((1, 32, 32), (1, 64, 64)),
            "train": ((1, 32, 32), (2, 32, 32)),
        }
        return Scale(32, 1, 16, sizes, (2, 13, 17), scaling, large_side=500, matrix=512, rounds=2)
    sizes = {"train": (8, 96, 96), "infer": (1, 321, 481), "distill": (32 if cuda else 8, 160, 160)}
    if network == "released":
        sizes |= {"train": (6, 64, 64), "distill": (8, 96, 96)}
    scaling = {
        "infer": ((1, 256, 256), (1, 512, 512), (1, 1024, 1024)),
        "train": ((2, 96, 96), (4, 96, 96), (8, 96, 96)),
    }
    released = network == "released"
    width, blocks, student_width = (64, 3, 64) if released else (96, 8, 160)
    forms = dict(mdc="residual", student_blocks="residual") if released else {}
    matrix = 8192 if cuda else 2048
    return Scale(width, blocks, student_width, sizes, (2, 37, 41), scaling, 10_000, matrix, rounds=5, **forms)


# --------------------------------------------------------------------------------------- what is timed


class Case:
    """One task on one path: a model, its input, and as a call what is timed."""

    def __init__(self, task: str, variant: Variant, scale: Scale, device: torch.device):
        self.task, self.variant, self.device = task, variant, device
        torch.manual_seed(0)
        if task == "distill":
            self.model = MWCNN(1, scale.student_width, blocks=scale.student_blocks)
            if not variant.channels_last:
                # the student turns its input channels-last, and what follows keeps the layout it is given
                self.model.down1.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))
        else:
            self.model = BlindSpotDenoiser(1, "awgn", scale.width, scale.blocks, scale.mdc)
            self.model.path = variant.form
            for net in (self.model.cov_head, self.model.noise_estimator.net):
                # zero as they are made: layers before them would have no say in the comparison
                nn.init.normal_(net.last.weight, std=0.01)
        self.model.dtype = variant.dtype
        self.model.to(device, memory_format=torch.channels_last if variant.channels_last else torch.contiguous_format)
        if variant.compiled != "off":
            self.model.compile(fullgraph=True, dynamic=False, mode=COMPILE_MODES[variant.compiled])
        self.optimizer = None
        if task == "infer":
            self.model.eval().requires_grad_(False)
        else:
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.y = self.target = torch.empty(0)

    def feed(self, size: Size) -> None:
        """Sets the input, the same for every path: y (N,1,H,W), and the student's target."""
        images, height, width = size
        generator = torch.Generator().manual_seed(0)
        self.y, self.target = (
            torch.rand(images, 1, height, width, generator=generator).to(self.device) for _ in range(2)
        )

    def loss(self) -> tuple[Tensor, list[Tensor]]:
        """What is minimised, and what the network adds of its own to it, (N,1,H,W) each."""
        if self.task == "distill":
            out = self.model(self.y)
            return (out - self.target).square().mean((1, 2, 3)).mean(), [out - self.y]
        p = self.model(self.y)
        return sum(objective(p, self.y, "joint", "envelope", 0.05).values()), [p.mu, p.cov_total.variance]

    def step(self) -> None:
        """One step of train_dbsn.py or train_distill.py."""
        self.optimizer.zero_grad()
        loss, _ = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0 if self.task == "distill" else 10.0)
        self.optimizer.step()

    @torch.no_grad()
    def infer(self) -> Tensor:
        return posterior_mean(self.y, self.model(self.y))

    def algorithms(self) -> AbstractContextManager:
        return deterministic_algorithms() if self.variant.deterministic else nullcontext()

    def __call__(self) -> None:
        with self.algorithms():
            self.infer() if self.task == "infer" else self.step()

    def results(self) -> dict[str, Tensor]:
        """What must be the same on every path: outputs, and the gradient where the task trains.

        Weights stay as they are.
        """
        with self.algorithms():
            if self.task == "infer":
                with torch.no_grad():
                    # a CUDA graph's next replay overwrites its outputs
                    return {"mu": self.model(self.y).mu.clone(), "posterior mean": self.infer()}
            loss, outputs = self.loss()
            loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in self.model.parameters()])
        self.optimizer.zero_grad()
        return {
            "loss": loss.detach(),
            "output": torch.cat([o.detach().flatten() for o in outputs]),
            "gradient": gradient,
        }

    def bytes_held(self) -> int:
        """Of weights, gradients and the optimizer's state, between steps."""
        tensors = [t for p in self.model.parameters() for t in (p, p.grad) if t is not None]
        if self.optimizer:
            tensors += [
                t
                for state in self.optimizer.state.values()
                for t in state.values()
                if t.device.type == self.device.type
            ]
        return sum(t.numel() * t.element_size() for t in tensors)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def flops(task: str, size: Size, scale: Scale) -> int:
    """Floating-point operations of one call of the plain path, forward and, where it trains, backward.

    Nothing is computed: tensors have no data.
    """
    case = Case(task, DENOISER[PLAIN], scale, torch.device("meta"))
    case.feed(size)
    with FlopCounterMode(display=False) as counter:
        if task == "infer":
            case.infer()
        else:
            case.loss()[0].backward()
    return counter.get_total_flops()


# ----------------------------------------------------------------------------------------- correctness


def guard(path: str, found: dict[str, Tensor], wanted: dict[str, Tensor], dtype: torch.dtype) -> None:
    """RunError unless the results of a path are the plain path's, within what its precision allows."""
    for name, reference in wanted.items():
        tolerance = 1e-3 if dtype == FLOAT else 0.3 if name == "gradient" else 0.1  # of the reference's norm
        difference = ((found[name].double() - reference.double()).norm() / reference.double().norm()).item()
        if not difference <= tolerance:
            raise RunError(
                f"path {path!r}: {name} differs from the plain path's by {difference:.1e} of its norm, "
                f"more than {tolerance:g}; its speed means nothing"
            )


def build(task: str, variants: dict[str, Variant], size: Size, scale: Scale, device: torch.device) -> dict[str, Case]:
    """The cases of a task, each compared with the plain one and fed with images of `size`.

    One that cannot be compiled here is left out, with a line.
    """
    torch.compiler.reset()  # the compiler gives up on a function after a handful of versions
    cases, wanted = {}, {}
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    for path, variant in variants.items():
        case = Case(task, variant, scale, device)
        # on a GPU paths are compiled, which is once for each size
        case.feed(size if device.type == "cuda" else scale.check)
        try:
            found = case.results()
        except torch._dynamo.exc.TorchDynamoException as error:
            print(f"{task}, {path}: left out, cannot be compiled here: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        wanted = wanted or found  # plain comes first
        guard(path, found, wanted, variant.dtype)
        case.feed(size)
        cases[path] = case
    torch.backends.cudnn.allow_tf32 = tf32
    return cases


# ------------------------------------------------------------------------------------------- measuring


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_peaks(n: int, device: torch.device) -> dict[torch.dtype, float]:
    """Floating-point operations per second of an n x n matrix product, by dtype.

    A CPU's product is that of the faster library: on some processors PyTorch's usual one reaches half of oneDNN's,
    which computes the convolutions. oneDNN has none in bfloat16 where the CPU has not (`cpu_has_bf16`).
    """
    peaks = {}
    on_cpu = device.type == "cpu" and torch.backends.mkldnn.is_available()
    tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for dtype in (FLOAT, BF16):
        products = [torch.matmul]
        if on_cpu and (dtype == FLOAT or cpu_has_bf16()):
            products.append(lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
        a, b = (torch.rand(n, n, device=device).to(dtype) for _ in range(2))
        times = [[seconds_of(lambda f=f, a=a, b=b: f(a, b), device) for _ in range(9)] for f in products]
        peaks[dtype] = 2 * n**3 / min(statistics.median(t[2:]) for t in times)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return peaks


def time_rounds(cases: dict[str, Case], device: torch.device, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of every round, by path.

    There are at least `rounds` rounds, and more until `seconds` are used up. Each round begins with another path.
    """
    for case in cases.values():
        case()  # warm-up: libraries choose kernels, Adam makes its state
    times: dict[str, list[float]] = {path: [] for path in cases}
    order, start, done = list(cases), time.perf_counter(), 0
    while done < rounds or time.perf_counter() - start < seconds:
        for path in order:
            times[path].append(seconds_of(cases[path], device))
        order = order[1:] + order[:1]
        done += 1
    return times


def cuda_peak_mb(case: Case) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    others = torch.cuda.memory_allocated() - case.bytes_held()
    case()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - others) / 2**20


def resident_mb() -> tuple[float, float] | None:
    """Resident size of this process now and at its greatest.

    None where the system has no /proc. (getrusage's peak would be no less than the parent's.)
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["VmHWM"].split()[0]) / 1024


def one(task: str, path: str, scale: Scale, device: torch.device) -> dict[str, float | None]:
    """What a fresh process measures: seconds, peak_mb. In it nothing but this task runs, on this path."""
    if path == LARGE:
        torch.manual_seed(0)
        model = (
            BlindSpotDenoiser(1, "awgn", width=16, blocks=1)
            .to(device, memory_format=torch.channels_last)
            .eval()
            .requires_grad_(False)
        )
        y = torch.rand(1, 1, scale.large_side, scale.large_side)
        seconds = seconds_of(lambda: denoise_batch(model, y, progress=True), device)
        sizes = resident_mb()
        return {"seconds": seconds, "peak_mb": sizes[1] if sizes else None}
    case = Case(task, variants_of(task, device.type)[path], scale, device)
    case.feed(scale.sizes[task])
    before = resident_mb()
    # the second step of a training has the optimizer's state beside it
    seconds = [seconds_of(case, device) for _ in range(1 if task == "infer" else 2)][-1]
    after = resident_mb()
    return {"seconds": seconds, "peak_mb": after[1] - before[0] if after else None}


def in_fresh_process(task: str, path: str, opt: argparse.Namespace) -> dict[str, float | None]:
    command = [sys.executable, __file__, "--one", task, path, "--device", opt.device, "--network", opt.network]
    command += ["--quick"] if opt.quick else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RunError(f"{task}, {path}: the process that measures its memory ended with code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------------ rows


def row(
    task: str,
    path: str,
    size: Size,
    times: list[float],
    plain: float | None,
    peak_mb: float | None,
    share: float | None,
) -> dict:
    seconds = statistics.median(times)
    return {
        "task": task,
        "path": path,
        "size": "x".join(map(str, size)),
        "seconds": seconds,
        "spread": float(np.subtract(*np.percentile(times, [75, 25]))),
        "ratio_to_plain": None if plain is None else plain / seconds,
        "peak_memory_mb": peak_mb,
        "flops_share": share,
        "pixels_per_second": size[0] * size[1] * size[2] / seconds,
        "images_per_second": size[0] / seconds,
    }


def measure(
    task: str,
    size: Size,
    variants: dict[str, Variant],
    scale: Scale,
    device: torch.device,
    opt: argparse.Namespace,
    peaks,
    memory: bool,
) -> list[dict]:
    """Rows of a task at one size, one for each path."""
    cases = build(task, variants, size, scale, device)
    times = time_rounds(cases, device, opt.rounds or scale.rounds, opt.seconds)
    peak_mb: dict[str, float | None] = dict.fromkeys(cases)
    if device.type == "cuda":
        peak_mb = {path: cuda_peak_mb(case) for path, case in cases.items()}
    cases.clear()
    if memory and device.type == "cpu" and not opt.quick:
        peak_mb = {path: in_fresh_process(task, path, opt)["peak_mb"] for path in times}
    work, plain = flops(task, size, scale), statistics.median(times[PLAIN]) if PLAIN in times else None
    shares = {path: work / statistics.median(t) / peaks[variants[path].dtype] for path, t in times.items()}
    return [row(task, path, size, t, plain, peak_mb[path], shares[path]) for path, t in times.items()]


def measure_large(scale: Scale, device: torch.device, opt: argparse.Namespace) -> dict:
    """The row of one image that has to be denoised in tiles, by a small model (16 channels, 1 + 1 blocks)."""
    size = (1, scale.large_side, scale.large_side)
    found = in_fresh_process("infer", LARGE, opt)
    return row(
        "infer",
        f"{LARGE} {scale.large_side**2 / 1e6:g} megapixel",
        size,
        [found["seconds"]],
        None,
        found["peak_mb"],
        None,
    )


def read_rows(file: Path) -> list[dict]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--show {file}: {error.strerror if isinstance(error, OSError) else 'not JSON'}; "
            "give a file that --json wrote"
        ) from error


HEADER = ("task", "path", "size", "ms", "+-", "x plain", "images/s", "Mpixel/s", "peak MB", "% of peak")


def cells(r: dict) -> tuple[str, ...]:
    def shown(value: float | None, form: str, factor: float = 1.0) -> str:
        return "-" if value is None else format(factor * value, form)

    numbers = [
        shown(r["seconds"], ".2f", 1e3),
        shown(r["spread"], ".2f", 1e3),
        shown(r["ratio_to_plain"], ".2f"),
        shown(r["images_per_second"], ".3g"),
    ]
    numbers += [
        shown(r["pixels_per_second"], ".3g", 1e-6),
        shown(r["peak_memory_mb"], ".0f"),
        shown(r["flops_share"], ".1f", 100),
    ]
    return r["task"], r["path"], r["size"], *numbers


def table(rows: list[dict]) -> str:
    lines = [HEADER, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(c.ljust(w) if k < 3 else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths))).rstrip()
        for line in lines
    )


def machine_name(device: torch.device) -> str:
    return device_name(device) + (f", {torch.get_num_threads()} threads" if device.type == "cpu" else "")


# ------------------------------------------------------------------------------------------ the script


def parser() -> Parser:
    p = Parser(
        prog="scripts/benchmark.py",
        description="Time and memory of training and inference on every path, against the plain network.",
        allow_abbrev=False,
    )
    p.add_argument(
        "--json",
        type=Path,
        default=None,
        metavar="FILE",
        help="where the rows go; without it only the table is printed",
    )
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one")
    p.add_argument(
        "--network",
        choices=("published", "released"),
        default="published",
        help="the paper's sizes, or those of the released weights: 64 channels, 3 + 3 blocks, a residual student of 64",
    )
    p.add_argument(
        "--quick",
        action="store_true",
        help="small networks and images, few rounds, no memory of fresh processes: to see that it works",
    )
    p.add_argument(
        "--seconds",
        type=number(float, 0),
        default=60.0,
        metavar="S",
        help="go on with rounds of a task until this long has been used (default: 60)",
    )
    p.add_argument(
        "--rounds",
        type=number(int, 1),
        default=None,
        help="rounds that are made however long they take (default: 5, or 2 with --quick)",
    )
    p.add_argument(
        "--scaling",
        action="store_true",
        help="also infer larger images and train larger batches, on the path this machine takes",
    )
    p.add_argument(
        "--large",
        action="store_true",
        help="also denoise 100 megapixels in tiles, with a small network (1/4 megapixel with --quick)",
    )
    p.add_argument(
        "--show",
        type=Path,
        default=None,
        metavar="FILE",
        help="measure nothing: print the table of a file that --json wrote",
    )
    p.add_argument(
        "--one",
        nargs=2,
        metavar=("TASK", "PATH"),
        default=None,
        help="for the benchmark's own use: measure one path in this process",
    )
    return p


def main(argv: list[str] | None = None) -> int:
    opt = parser().parse_args(argv)
    if opt.json and not opt.json.absolute().parent.is_dir():
        raise UsageError(f"--json {opt.json}: there is no folder {opt.json.absolute().parent}")
    if opt.show:
        print(table(read_rows(opt.show)))
        return 0
    # deterministic algorithms need it set before CUDA starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = choose_device(opt.device)
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # a debugging aid that would only slow the deterministic paths
    )
    scale = scale_of(opt.quick, device.type, opt.network)
    if opt.one:
        task, path = opt.one
        if path != LARGE and (task not in TASKS or path not in variants_of(task, device.type)):
            raise UsageError(f"--one {task} {path!r}: there is no such task and path on this device")
        print(json.dumps(one(task, path, scale, device)))
        return 0
    keep_freed_memory()  # as the training scripts do; every path has it

    peaks = matrix_peaks(scale.matrix, device)
    machine = machine_name(device)
    print(
        f"{machine}; PyTorch {torch.__version__}; matrix product {peaks[FLOAT] / 1e12:.3g} TFLOP/s in float32, "
        f"{peaks[BF16] / 1e12:.3g} in bf16",
        flush=True,
    )
    stage1 = f"D-BSN {scale.width} channels, {scale.blocks}+{scale.blocks} {scale.mdc} blocks"
    print(f"{stage1}; MWCNN {scale.student_width} channels, {scale.student_blocks} blocks\n", flush=True)

    rows: list[dict] = []

    def keep(task: str, more: list[dict]) -> None:
        """Adds rows and writes what there is: an hour's work may be broken off."""
        rows.extend(more)
        if opt.json:
            described = [r | {"machine": machine, "torch": torch.__version__} for r in rows]
            atomic_write_json(opt.json, described)
        print(f"{task}: done", file=sys.stderr)

    for task in TASKS:
        keep(
            task,
            measure(task, scale.sizes[task], variants_of(task, device.type), scale, device, opt, peaks, memory=True),
        )
    if opt.scaling:
        own = (
            f"{'phases' if device.type == 'cuda' else 'fused'} "
            f"{'bf16' if choose_dtype('auto', device) == BF16 else 'float32'}"
        )
        variants = {own: DENOISER[own]}
        for task, sizes in scale.scaling.items():
            for size in sizes:
                if size != scale.sizes[task]:  # that one is measured already
                    keep(f"{task} by size", measure(task, size, variants, scale, device, opt, peaks, memory=False))
    if opt.large:
        keep("large", [measure_large(scale, device, opt)])
    print(table(rows))
    return 0


if __name__ == "__main__":
    run_script(main)
