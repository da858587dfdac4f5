"""scripts/inspect_noise.py: its table, files and messages."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from skimage.data import astronaut, camera

from scripts import inspect_noise
from utils.errors import run_script


@pytest.fixture
def noisy(tmp_path):
    folder = tmp_path / "noisy"
    folder.mkdir()
    random = np.random.RandomState(0)
    gray = (camera()[:128, 200:328] + random.normal(0, 20, (128, 128))).clip(0, 255).astype(np.uint8)
    color = (astronaut()[:96, 200:328] + random.normal(0, 20, (96, 128, 3))).clip(0, 255).astype(np.uint8)
    cv2.imwrite(str(folder / "gray.png"), gray)
    cv2.imwrite(str(folder / "a colour.png"), color[..., ::-1])
    cv2.imwrite(str(folder / "sixteen.png"), gray.astype(np.uint16) * 257)
    return folder


def look(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        run_script(lambda: inspect_noise.main([str(a) for a in arguments]))
    return end.value.code, *capsys.readouterr()


def test_table_advice_and_files(noisy, tmp_path, capsys):
    code, out, _ = look(capsys, noisy, "--json", tmp_path / "n.json", "--plot", tmp_path / "n.png", "--amp", "off")
    assert code == 0
    rows = {line[: line.index(".png")]: line.split()[-1] for line in out.splitlines() if ".png  " in line}
    assert list(rows) == ["a colour", "gray", "sixteen"]
    assert "test.py --checkpoint gray-" in out and "test.py --checkpoint color-" in out and "train_dbsn.py" in out
    images = {one["name"]: one for one in json.loads((tmp_path / "n.json").read_text())["images"]}
    assert images["gray.png"]["level"] == pytest.approx(20, rel=0.15)
    assert images["sixteen.png"]["level"] == pytest.approx(257 * images["gray.png"]["level"], rel=0.01)
    assert cv2.imread(str(tmp_path / "n.png")) is not None


@pytest.mark.parametrize("shows", [(1, 1, 1), (0, 1, 0), (0, 1, 1)])
def test_a_gray_picture_in_colours_is_a_gray_one(shows, noisy, capsys):
    gray = cv2.imread(str(noisy / "gray.png"), 0)
    for file in noisy.iterdir():
        file.unlink()
    cv2.imwrite(str(noisy / "gray.png"), gray)
    cv2.imwrite(str(noisy / "in colours.png"), gray[..., None] * np.array(shows, np.uint8))
    _, out, _ = look(capsys, noisy, "--amp", "off")
    rows = [line.split("  ")[-8:] for line in out.splitlines() if ".png  " in line]
    assert len(rows) == 2 and rows[0] == rows[1]
    assert "in colours.png' --mode gray" in out and "--checkpoint color" not in out


def test_training_is_advised_where_it_is_possible(noisy, tmp_path, capsys):
    gray = cv2.imread(str(noisy / "gray.png"), 0)
    for name in ("floats", "holed"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", gray.astype(np.float32))
    _, out, _ = look(capsys, tmp_path / "floats", "--amp", "off")
    assert "--steps 1000 --units noise" in out
    gray = gray.astype(np.float32)
    gray[:9, :9] = np.nan
    np.save(tmp_path / "holed" / "b.npy", gray)
    _, out, _ = look(capsys, tmp_path / "holed", "--amp", "off")
    assert f"--noisy {tmp_path}/holed/a.npy --noise" in out
    (tmp_path / "holed" / "a.npy").unlink()
    _, out, _ = look(capsys, tmp_path / "holed", "--amp", "off")
    assert "cannot be trained on" in out and "train_dbsn.py" not in out


def test_a_bad_picture_among_others(noisy, capsys):
    (noisy / "b.png").write_bytes(b"no picture")
    cv2.imwrite(str(noisy / "flat.png"), np.full((70, 70), 9, np.uint8))
    cv2.imwrite(str(noisy / "small.png"), np.arange(64, dtype=np.uint8).reshape(8, 8))
    code, out, err = look(capsys, noisy, "--most", 9)
    assert code == 1 and "gray.png" in out
    assert "3 pictures skipped" in err and "b.png" in err and "flat.png has one value everywhere" in err
    assert "small.png has fewer than 400 pixels" in err
    code, _, err = look(capsys, noisy, "--on-bad", "stop")
    assert code == 2 and "b.png" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere/"], "no such file or folder"),
        (["{}", "--plot", "n.doc"], "end it in .png, .pdf or .svg"),
        (["{}", "--json", "n.png"], "end it in .json"),
        (["{}", "--plot", "{}/gray.png"], "is one of the images themselves"),
        (["{}", "--json", "nowhere/n.json"], "the folder nowhere does not exist"),
        (["{}", "--most", "0"], "at least 1"),
    ],
)
def test_wrong_use(arguments, words, noisy, capsys):
    code, _, err = look(capsys, *(a.format(noisy) for a in arguments))
    assert code == 2 and words in err and err.startswith("error:") and len(err.strip().splitlines()) == 1
