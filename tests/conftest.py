from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage.data import astronaut, camera

import train_dbsn
import train_distill
from data.images import read_image
from tests.helpers import LEVELS, SCRIPTS, TINY, TINY2
from utils.errors import run_script

torch.set_num_threads(1)  # tests run in several processes


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
    """Tests do not see the user's own data folder."""
    monkeypatch.delenv("DBSN_DATA", raising=False)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [t.name for t in threading.enumerate() if t.name.startswith("decode")]


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


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
def folder(pictures, tmp_path):
    shutil.copytree(pictures / "gray", tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def mixed(pictures, tmp_path):
    """Colour and gray, 8 and 16 bits, upright and turned."""
    shutil.copytree(pictures / "color", tmp_path / "mixed")
    for k in range(3):
        deep = 257 * read_image(pictures / "gray" / f"{k}.png")[..., 0].astype(np.uint16)
        # turned by a quarter
        tifffile.imwrite(tmp_path / "mixed" / f"deep{k}.tif", deep, extratags=[(274, "H", 1, 6, True)])
    return tmp_path / "mixed"


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


@pytest.fixture
def wrong_use(run, pictures, models, tmp_path):
    """wrong_use("test", "--data P/gray ..", words): it ends in one line that has the words, and begins nothing.

    P is a folder that has gray and color pictures, and two more folders, empty and bad. s1 and s2 are runs.
    """
    for folder in ("empty", "bad"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bad" / "text.png").write_text("no picture")
    for name in ("gray", "color"):
        (tmp_path / name).symlink_to(pictures / name)
    for name in ("s1", "s2"):
        shutil.copytree(models / name, tmp_path / name)

    def call(script: str, line: str, words: str) -> None:
        before = {f for f in tmp_path.rglob("*") if f.is_file()}
        code, out, err = run(script, line.replace("P/", f"{tmp_path}/").replace("-root P", f"-root {tmp_path}"))
        assert code == 2, (code, out, err)
        message = [text for text in err.splitlines() if text.startswith("error:")]
        assert len(message) == 1 and words in message[0] and "Traceback" not in err
        assert {f for f in tmp_path.rglob("*") if f.is_file()} == before

    return call
