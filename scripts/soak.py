"""Kills trainings with SIGKILL at random moments and starts each again with the same command.

What they leave is compared with a run never interrupted.

    python scripts/soak.py --kills 200                   both stages
    python scripts/soak.py --kills 50 --stage 2 --keep /tmp/soak

A tiny model is trained on crops of photographs that come with scikit-image. A run is equal to the reference if it
left the same files, with the same tensors and values bit for bit (the run's name aside), and a stats.jsonl of the
same bytes. The last line is the figure: survived N kills in M runs, 0 differences. Exit code 1 and the folders kept
where anything differs.

Most trainings run in a forked child of this process, which has imported everything already, because imports take a
hundred times as long as a step; the share --fresh-share of them in a fresh interpreter, as a user starts them. The
child is a real process either way, and gets a real SIGKILL.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
ROOT = Path(__file__).resolve().parents[1]
# before NumPy and torch: a process with threads must not fork, and the bits of a sum depend on their number
os.environ.update(THREADS)
sys.path.insert(0, str(ROOT))

import faulthandler  # noqa: E402
import json  # noqa: E402
import random  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from argparse import ArgumentDefaultsHelpFormatter, Namespace  # noqa: E402
from collections.abc import Callable  # noqa: E402
from contextlib import suppress  # noqa: E402
from dataclasses import dataclass  # noqa: E402

import torch  # noqa: E402
import torch._dynamo  # noqa: E402 (what the optimizer and the log would import in every child)
import torch.utils.tensorboard  # noqa: E402
from tqdm import tqdm  # noqa: E402

import train_dbsn  # noqa: E402
import train_distill  # noqa: E402
from data.images import read_image, write_image  # noqa: E402
from data.sets import find_images  # noqa: E402
from options.base import Parser, number  # noqa: E402
from utils.checkpoint import DamagedCheckpoint, load_checkpoint  # noqa: E402
from utils.errors import EXIT_FAILURE, RunError, UsageError, run_script  # noqa: E402

LIMIT = 60  # seconds after which a training that neither ends nor comes to the awaited moment has hung
COMMON = (
    "--patch-size 16 --log-every 1 --val-every 4 --warmup 2 --noise awgn --sigma 5 55 --noise-draw fresh --device cpu "
    "--amp off"
)
STAGE1 = f"--width 4 --blocks 1 --batch-size 2 --mu-steps 8 --sigma-steps 8 --steps 24 --save-every 2 {COMMON}"
STAGE2 = f"--student-width 4 --batch-size 4 --noisy-share 0.5 --steps 40 --save-every 1 {COMMON}"


@dataclass(frozen=True)
class Case:
    """One training to be killed. script: as in SCRIPTS; argv: all of its command line but --name."""

    script: str
    argv: list[str]
    folder: Path  # of its run folders

    @property
    def reference(self) -> Path:
        return self.folder / f"{self.script}-reference"


SCRIPTS = {"train_dbsn": train_dbsn.main, "train_distill": train_distill.main}


def main(argv: list[str] | None = None) -> int:
    opt = parse(argv)
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread, so that forking is safe
    # its own lock is shared with forked children: one that is killed while it writes would hold it for ever
    tqdm.set_lock(threading.RLock())
    choose = random.Random(opt.seed)
    if opt.keep:
        try:
            opt.keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--keep {opt.keep}: cannot create the folder ({error.strerror})") from error
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir=opt.keep))
    bar = tqdm(total=opt.kills, unit="kill", disable=None)
    try:
        cases, spans = prepare(folder, opt.stage)
        kills, unfinished, runs, differences = 0, 0, 0, []
        while kills < opt.kills and not differences:
            case = cases[runs % len(cases)]
            run = folder / f"{case.script}-{runs + 1:04d}"
            # every stage gets its share, however few the kills are
            most = min(opt.kills - kills, -(-opt.kills // len(cases)))
            hits, halves = survive(case, run, most, choose, spans[case.script], opt.fresh_share, bar)
            kills, unfinished = kills + hits, unfinished + halves
            runs += 1
            differences = [f"{run.name}: {d}" for d in compare(case.reference, run)]
            if not differences and not opt.keep:
                shutil.rmtree(run)
            bar.set_postfix(runs=runs)
    except BaseException:
        bar.close()
        print(f"the folders are kept in {folder}", file=sys.stderr)
        raise
    bar.close()
    for difference in differences[:20]:
        print(difference)
    if len(differences) > 20:
        print(f".. and {len(differences) - 20} more")
    if differences or opt.keep:
        print(f"the folders are kept in {folder}")
    else:
        shutil.rmtree(folder)
    print(f"{unfinished} of the kills left a file half written")
    print(f"survived {kills} kills in {runs} runs, {len(differences)} differences")
    return EXIT_FAILURE if differences else 0


def parse(argv: list[str] | None) -> Namespace:
    description = "Kill trainings at random moments and check that they end as if never killed."
    parser = Parser(
        prog="scripts/soak.py",
        description=description,
        formatter_class=ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--kills", type=number(int, 1), required=True, help="how many kills have to hit a live training"
    )
    parser.add_argument(
        "--seed", type=number(int, 0), default=0, help="of the moments; what one falls on depends on the machine too"
    )
    parser.add_argument(
        "--stage", choices=("1", "2", "both"), default="both", help="which script is killed; both: in turns"
    )
    parser.add_argument(
        "--fresh-share", type=number(float, 0, 1), default=0.1, help="share of the starts in a fresh interpreter"
    )
    parser.add_argument(
        "--keep", type=Path, default=None, metavar="DIR", help="work in a new folder below DIR and keep it"
    )
    return parser.parse_args(argv)


def prepare(folder: Path, stage: str) -> tuple[list[Case], dict[str, float]]:
    """Prepares the pictures and the uninterrupted reference of each case, made in a fresh interpreter.

    It also finds the seconds that a case's steps take in a forked child. The child's run is compared as well: a fork
    has to leave the same bits as a fresh start, or nothing below would mean anything.
    """
    (folder / "pictures").mkdir()
    # H,W,1
    photograph = read_image(next(f for f in find_images("skimage_test") if f.name == "camera.png"), mode="gray")
    for k in range(10):
        write_image(folder / "pictures" / f"{k}.png", photograph[40 * k : 40 * k + 24 + k % 2, 200:223])
    where = ["--checkpoints-dir", str(folder)]
    pictures = str(folder / "pictures")
    first = Case("train_dbsn", [*STAGE1.split(), "--clean", pictures, *where], folder)
    teacher = str(first.reference / "last.safetensors")
    second = Case(
        "train_distill",
        [*STAGE2.split(), "--clean", pictures, "--synthetic-noisy", pictures, "--teacher", teacher, *where],
        folder,
    )

    cases, spans = {"1": [first], "2": [second], "both": [first, second]}[stage], {}
    for case in [first, second]:
        if case in cases or case is first:  # the first makes the teacher
            expect_success(until(start(case, case.reference, fresh=True), lambda: False), case.reference)
        if case in cases:
            run = folder / f"{case.script}-0000"
            pid = start(case, run, fresh=False)
            until(pid, Progress(run).logged)
            begun = time.monotonic()
            expect_success(until(pid, lambda: False), run)
            spans[case.script] = time.monotonic() - begun
            if differences := compare(case.reference, run):
                raise RunError(f"two runs that nobody interrupted differ: {'; '.join(differences)}")
    return cases, spans


def start(case: Case, run: Path, fresh: bool) -> int:
    """Starts the training; returns its process id. What it prints is appended to the run's log, beside its folder."""
    argv, log = [*case.argv, "--name", run.name], log_of(run)
    if fresh:
        to_log = [
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        command = [sys.executable, "-X", "faulthandler", str(ROOT / f"{case.script}.py"), *argv]
        return os.posix_spawn(sys.executable, command, os.environ, file_actions=to_log)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = EXIT_FAILURE
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            faulthandler.enable(2)
            run_script(lambda: SCRIPTS[case.script](argv))
        except SystemExit as end:
            code = end.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)  # nothing of the parent's is to be cleaned up here
    return pid


def survive(
    case: Case, run: Path, most: int, choose: random.Random, span: float, fresh_share: float, bar: tqdm
) -> tuple[int, int]:
    """Kills the run and starts it again until it comes to its end.

    That is at the latest after `most` kills. Gives how many hit it, and how many of those left a temporary file.
    """
    kills, unfinished = 0, 0
    while True:
        progress, fresh = Progress(run), choose.random() < fresh_share
        pid = start(case, run, fresh)
        code = until_killed(pid, progress, choose, span) if kills < most else until(pid, lambda: False)
        if code is not None:
            expect_success(code, run)
            return kills, unfinished
        kills += 1
        unfinished += any(name.endswith(".tmp") for name in set(progress.names()) - progress.at_start)
        bar.update()


def until_killed(pid: int, progress: Progress, choose: random.Random, span: float) -> int | None:
    """Kills the process at a random moment.

    The moment is anywhere in its first steps, while or just after it saves, or while it begins. Gives its exit code
    where it was faster, None where the signal ended it.
    """
    aim = choose.choices(("step", "saving", "beginning"), (5, 4, 1))[0]
    moment = {
        "step": progress.logged,
        "saving": progress.saving(choose.randint(1, 8)),
        "beginning": lambda: progress.locked_by(pid),
    }[aim]
    later = {
        "step": choose.uniform(0, span / 3),
        "saving": choose.choice((0, choose.uniform(0, 0.005))),
        "beginning": choose.uniform(0, 0.03),
    }[aim]
    code = until(pid, moment)
    if code is None and later:
        end = time.monotonic() + later
        code = until(pid, lambda: time.monotonic() >= end)
    if code is not None:
        return code
    os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if code == -signal.SIGKILL else code  # it may have ended between the two lines


def until(pid: int, happened: Callable[[], bool]) -> int | None:
    """Waits until something has happened (None) or the process has ended (its exit code).

    The process is killed where this is interrupted.
    """
    end, done = time.monotonic() + LIMIT, 0
    try:
        while not happened():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                os.kill(pid, signal.SIGABRT)  # faulthandler writes to the log where it hangs
                time.sleep(1)
                raise RunError(
                    f"a training made no progress in {LIMIT} seconds; the end of its log shows where it hung"
                )
            time.sleep(0.0003)
        return None
    except BaseException:
        if not done:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise


def expect_success(code: int, run: Path) -> None:
    if code:
        text = log_of(run).read_text(errors="replace").strip().splitlines()
        raise RunError(f"{run.name} ended with exit code {code}: {' | '.join(text[-3:])}")


def log_of(run: Path) -> Path:
    return run.with_name(f"{run.name}.log")


class Progress:
    """What a training has done in a run folder since this object was made; the folder need not exist yet."""

    def __init__(self, run: Path):
        self.run = run
        self.at_start = set(self.names())
        states = [int(name[6:14]) for name in self.at_start if name.startswith("state-")]
        self.step = max(states, default=0)
        self.stats = self.stats_file()
        self.seen: set[str] = set()

    def names(self) -> list[str]:
        try:
            return os.listdir(self.run)
        except FileNotFoundError:
            return []

    def stats_file(self) -> tuple[int, int]:
        try:
            found = os.stat(self.run / "stats.jsonl")
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_size

    def logged(self) -> bool:
        """A step was made and logged.

        Rows that an earlier, killed start logged after its last state do not count: they are cut off first, which makes
        another file of it.
        """
        if self.stats_file() == self.stats:
            return False
        lines = (self.run / "stats.jsonl").read_bytes().split(b"\n")[:-1] if self.stats_file()[1] else []
        return bool(lines) and json.loads(lines[-1])["step"] > self.step

    def saving(self, count: int) -> Callable[[], bool]:
        """Whether at least `count` temporary files and new states have been seen."""

        def happened() -> bool:
            self.seen |= {
                name for name in set(self.names()) - self.at_start if name.endswith(".tmp") or name.startswith("state-")
            }
            return len(self.seen) >= count

        return happened

    def locked_by(self, pid: int) -> bool:
        try:
            return f"process {pid} " in (self.run / ".lock").read_text()
        except FileNotFoundError:
            return False


def compare(reference: Path, run: Path) -> list[str]:
    """One line for each file, tensor and value in which a run folder is not what the reference is.

    The name of the run and its log do not count.
    """
    ignored = {".lock", "options.json", "tensorboard"}
    names = [set(os.listdir(folder)) - ignored for folder in (reference, run)]
    found = [f"{name} is {'missing' if name in names[0] else 'left over'}" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        if not name.endswith(".safetensors"):
            rows = [(folder / name).read_bytes().split(b"\n") for folder in (reference, run)]
            if rows[0] != rows[1]:
                line = next((k for k, (a, b) in enumerate(zip(*rows)) if a != b), min(map(len, rows)))
                found.append(f"{name} differs from line {line + 1} on")
            continue
        try:
            a, b = (load_checkpoint(folder / name) for folder in (reference, run))
        except DamagedCheckpoint as error:
            found.append(f"{name}: {error.reason}")
            continue
        found += [f"{name}: tensor {t} is in one of the two only" for t in sorted(a.tensors.keys() ^ b.tensors.keys())]
        found += [
            f"{name}: tensor {t} differs"
            for t in sorted(a.tensors.keys() & b.tensors.keys())
            if not identical(a.tensors[t], b.tensors[t])
        ]
        values = [{**c.values, "options": {**c.values.get("options", {}), "name": None}} for c in (a, b)]
        found += [
            f"{name}: {v} differs"
            for v in sorted(values[0].keys() | values[1].keys())
            if values[0].get(v) != values[1].get(v)
        ]
    return found


def identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Same dtype, shape and bits; -0.0 is not 0.0, and NaN may equal NaN."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    )


if __name__ == "__main__":
    run_script(main)
