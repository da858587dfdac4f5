"""scripts/estimator_study.py trains, measures and resumes.

Its measures are what they are called. docs/estimator.md shows the results that are committed.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from models import BlindSpotDenoiser, gaussian
from models.noise import NOISES
from scripts import estimator_study as study
from tests.helpers import ROOT
from utils.errors import UsageError

RESULTS, PAGE = ROOT / "results" / "estimator-study.json", ROOT / "docs" / "estimator.md"


@pytest.fixture
def command(tmp_path):
    """A study of four pictures at a tiny size; two of them are measured on."""
    (tmp_path / "pictures").mkdir()
    for k in range(4):
        Image.fromarray(astronaut()[40 * k : 40 * k + 24, 100:125]).save(tmp_path / "pictures" / f"{k}.png")
    line = (
        f"--data {tmp_path}/pictures --evaluation 2 --width 4 --blocks 1 --patch-size 16 --batch-size 2 --steps 3 "
        "--device cpu --amp off"
    )
    return [
        *line.split(),
        "--checkpoints-dir",
        str(tmp_path / "runs"),
        "--json",
        str(tmp_path / "results" / "r.json"),
        "--doc",
        str(tmp_path / "page.md"),
    ]


@pytest.mark.slow
def test_trains_measures_resumes_and_renders(command, tmp_path, monkeypatch):
    trained = []
    train = study.train_dbsn.main
    monkeypatch.setattr(study.train_dbsn, "main", lambda argv: trained.append(argv[1]) or train(argv))
    file = tmp_path / "results" / "r.json"
    assert study.main([*command, "--noises", "awgn", "--methods", "reward", "constrained-phases"]) == 0
    assert trained == ["awgn-reward-3", "awgn-constrained-phases-3"]
    first = json.loads(file.read_text())
    assert study.main([*command, "--noises", "awgn", "hg", "--methods", "constrained", "reward", "envelope-0.05"]) == 0
    assert study.main([*command, "--noises", "mg", "--methods", "envelope-0.05"]) == 0
    assert trained[2:] == [
        "awgn-constrained-3",
        "awgn-envelope-0.05-3",
        "hg-constrained-3",
        "hg-reward-3",
        "hg-envelope-0.05-3",
        "mg-envelope-0.05-3",
    ]
    results = json.loads(file.read_text())
    assert (
        results["rows"][:2] == first["rows"]
        and [f"{r['noise']}-{r['method']}-{r['steps']}" for r in results["rows"]] == trained
    )
    for row in results["rows"]:
        assert (
            set(row["psnr"]) == {"noisy", "mu", "posterior", "oracle"} and np.isfinite(list(row["psnr"].values())).all()
        )
        assert row["psnr"]["noisy"] == pytest.approx(-20 * np.log10(row["true_level"] / 255), abs=0.5)
        assert 0 < row["error"] <= row["largest_error"] and ("curve" in row) == (row["noise"] == "hg")
    stats = (tmp_path / "runs" / "awgn-constrained-phases-3" / "stats.jsonl").read_text()
    assert json.loads(stats.splitlines()[-1])["phase"] == "joint"

    measured = results["settings"]["evaluation"]
    options = json.loads((tmp_path / "runs" / "hg-reward-3" / "options.json").read_text())
    clean = {path.split("/")[-1] for path in options["clean"]}
    assert len(measured) == len(clean) == 2 and not clean & set(measured)

    with pytest.raises(UsageError, match=r"other settings \(lr 0.002, now 0.1\)"):
        study.main([*command, "--lr", "0.1"])

    (tmp_path / "page.md").write_text(
        "a\n" + "".join(f"<!-- {n} -->\n<!-- /{n} -->\n" for n in ("awgn", "hg", "mg", "blind")) + "b\n"
    )
    assert study.main([*command, "--blind", str(tmp_path / "runs" / "awgn-reward-3"), "--render"]) == 0
    page = (tmp_path / "page.md").read_text()
    assert (
        page.startswith("a\n")
        and page.endswith("b\n")
        and page.count("| envelope-0.05 | 3 |") == 3
        and "| true level |" in page
    )
    blind = json.loads(file.read_text())["blind"]["rows"]
    assert [r["level"] for r in blind] == list(range(5, 60, 5)) and all(len(r["estimated"]) == 4 for r in blind)
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="a gray AWGN model"):
        study.main([*command, "--blind", str(tmp_path / "runs" / "hg-reward-3")])


@pytest.mark.parametrize("noise", ["awgn", "hg", "mg"])
def test_measures_of_a_model_that_knows_the_noise(noise, monkeypatch):
    """Told the truth, a model has no error but that of looking it up at mu.

    Its own posterior is the oracle's. Told twice the truth, the error is there.
    """
    levels = {
        "awgn": {"sigma": (0.1, 0.1)},
        "hg": {"alpha": (0.2, 0.2), "delta": (0.05, 0.05)},
        "mg": {"sigma": (0.3, 0.3)},
    }[noise]
    model, added = BlindSpotDenoiser(3, noise, width=4, blocks=1), NOISES[noise](**levels)
    x = np.random.default_rng(0).random((3, 16, 17))
    told = lambda level, image: added.covariance(image, torch.zeros(1, 2))  # noqa: E731
    monkeypatch.setattr(model.noise_estimator, "covariance", told)
    right = study.measure_image(model, x, added)
    assert right["error"] == right["floor"] and (right["floor"] > 0.01 if noise == "hg" else right["floor"] < 1e-6)
    assert right["true_level"] == pytest.approx(255 * added.rms(x), rel=1e-5)
    assert right["psnr"]["posterior"] == pytest.approx(right["psnr"]["oracle"], abs=1e-4)
    monkeypatch.setattr(model.noise_estimator, "covariance", lambda *seen: told(*seen).scale(2.0))
    wrong = study.measure_image(model, x, added)
    assert wrong["level"] == pytest.approx(2 * right["level"]) and wrong["psnr"]["oracle"] == right["psnr"]["oracle"]
    if noise != "hg":
        assert right["level"] == pytest.approx(right["true_level"]) and wrong["error"] == pytest.approx(
            {"awgn": 1, "mg": 3}[noise], rel=1e-5
        )


def test_blind_levels_are_measured_on_draws_of_their_own(tmp_path, monkeypatch):
    """The same picture twice is two measurements, and the same two when they are made again."""
    Image.fromarray(np.full((64, 64), 128, np.uint8)).save(tmp_path / "flat.png")
    model = BlindSpotDenoiser(1, "awgn", width=4, blocks=1, estimator="residual").eval()
    monkeypatch.setattr(study, "load_model", lambda *_: model)
    monkeypatch.setattr(study, "BLIND_LEVELS", (20,))
    options = Namespace(device="cpu", amp="off", blind="any", seed=0)
    (row,) = study.measure_blind(options, [tmp_path / "flat.png"] * 2)
    assert row["estimated"][0] != row["estimated"][1]
    assert study.measure_blind(options, [tmp_path / "flat.png"] * 2) == [row]


def test_error_of_a_matrix_is_that_of_the_whole_matrix():
    """Of the symmetric matrix, where an entry beside the diagonal stands twice."""
    a, b = np.diag([1.0, 2.0, 3.0]), np.array([[1.0, 0.5, 0.0], [0.5, 2.0, 0.3], [0.0, 0.3, 4.0]])
    as_full = lambda m: gaussian.cholesky(torch.tensor([m[i, j] for i, j in gaussian.triangle(3)]).view(1, -1, 1, 1))  # noqa: E731
    assert study.relative_error(as_full(b), as_full(a)) == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a))


def test_a_stopped_training_ends_the_study_without_a_row(command, tmp_path, monkeypatch):
    monkeypatch.setattr(study.train_dbsn, "main", lambda argv: 75)
    assert study.main(command) == 75 and not (tmp_path / "results").exists()


def test_wrong_use(command, tmp_path):
    with pytest.raises(UsageError, match="run the study first"):
        study.main([*command, "--render"])
    with pytest.raises(UsageError, match="--evaluation 4 leaves nothing"):
        study.main([*command, "--evaluation", "4"])
    with pytest.raises(UsageError, match="marker <!-- awgn -->"):
        study.render(json.loads(RESULTS.read_text()), "a page without markers")


def test_the_page_shows_the_results():
    page = PAGE.read_text()
    assert study.render(json.loads(RESULTS.read_text()), page) == page
    rows = json.loads(RESULTS.read_text())["rows"]
    assert len(re.findall(r"^\| [a-z]+[-a-z0-9.]* \| \d+ \| ", page, flags=re.MULTILINE)) == len(rows)
