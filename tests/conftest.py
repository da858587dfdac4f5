from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage.data import astronaut, camera

import test as test_script
import train_dbsn
import train_distill
from utils.checkpoint import load_checkpoint
from utils.device import cpu_has_bf16
from utils.errors import run_script

torch.set_num_threads(1)  # tests run in several processes

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
SCRIPTS = {"train_dbsn": train_dbsn, "train_distill": train_distill, "test": test_script}
LEVELS = {
    "awgn": "--noise awgn --sigma 25",
    "hg": "--noise hg --alpha 40 --delta 10",
    "mg": "--noise mg",
    "poisson": "--noise poisson --lam 30",
}
TINY = "--width 4 --blocks 1 --patch-size 16 --batch-size 2 --log-every 1 --warmup 2 --amp off"
TINY2 = "--student-width 4 --patch-size 16 --batch-size 8 --log-every 1 --warmup 2 --amp off"
needs_bf16 = pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU has no bfloat16")


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
    """Tests do not see the user's own data folder."""
    monkeypatch.delenv("DBSN_DATA", raising=False)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def real_data(name: str) -> Path:
    """A folder of real test images under $DBSN_TEST_DATA or ../shared/data; the test is skipped where it is absent."""
    root = Path(os.environ.get("DBSN_TEST_DATA", SHARED))
    if not (root / name).is_dir():
        pytest.skip(f"the image set {name} is not at {root}")
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Ten colour and ten gray crops of real photographs, 40 x 37 and 37 x 40."""
    root = tmp_path_factory.mktemp("pictures")
    for name, photograph in (("color", astronaut()), ("gray", camera())):
        (root / name).mkdir()
        for k in range(10):
            crop = photograph[40 * k : 40 * k + 40, 100 : 100 + 37]
            Image.fromarray(crop if k % 2 else crop.swapaxes(0, 1)).save(root / name / f"{k}.png")
    return root


@pytest.fixture
def run(tmp_path, capsys):
    """run("train_dbsn", "--name a ..") -> exit code, stdout, stderr.

    It runs in this process, with run folders under tmp_path.
    """

    def call(script: str, line: str) -> tuple[int, str, str]:
        argv = [*line.split(), "--checkpoints-dir", str(tmp_path), "--device", "cpu"]
        with pytest.raises(SystemExit) as end:
            run_script(lambda: SCRIPTS[script].main(argv))
        out = capsys.readouterr()
        return end.value.code, out.out, out.err

    return call


def ok(result):
    code, out, err = result
    assert code == 0, err
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """What a run leaves that must not depend on interruptions."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix in (".safetensors", ".jsonl")}


@pytest.fixture(scope="session")
def models(tmp_path_factory, pictures):
    """A stage-1 and a stage-2 run, s1 and s2."""
    root = tmp_path_factory.mktemp("models")
    where = ["--checkpoints-dir", str(root), "--device", "cpu"]
    train_dbsn.main([*f"--name s1 --clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 1".split(), *where])
    train_distill.main(
        [*f"--name s2 --teacher s1 --clean {pictures}/gray --noisy {pictures}/gray {TINY2} --steps 1".split(), *where]
    )
    return root


def read_tensors(path):
    return load_checkpoint(path).tensors
