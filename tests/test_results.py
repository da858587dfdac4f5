"""Classical baselines, what test.py --json tells of where a figure comes from, and the tables rendered from it."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut, camera

import test as test_script
import utils.baselines
from tests.conftest import LEVELS, ROOT, ok, real_data
from utils.baselines import PACKAGES, denoise_classically
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import RunError
from utils.metrics import measure
from utils.provenance import code_version, training_facts

sys.path.insert(0, str(ROOT / "scripts"))
import release
import render_results


def available(name: str) -> str:
    for package in PACKAGES[name]:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"the package {package} is not installed")
    return name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "gain"), [("wavelet", 4), ("nlm", 5), ("bm3d", 7)])
def test_baselines_improve_a_photograph_and_give_the_same_bits(name, gain, channels):
    available(name)
    clean = (camera()[80:128, 200:248, None] if channels == 1 else astronaut()[60:108, 200:248]).astype(
        np.float32
    ) / 255
    noisy = clean + np.random.default_rng(0).normal(0, 25 / 255, clean.shape).astype(np.float32)
    result = denoise_classically(name, noisy, 25 / 255)
    assert result.shape == clean.shape and result.dtype == np.float32
    assert measure(clean, result)["psnr"] > measure(clean, noisy, clamp=False)["psnr"] + gain
    np.testing.assert_array_equal(result, denoise_classically(name, noisy, 25 / 255))
    np.testing.assert_array_equal(noisy, denoise_classically(name, noisy, 0.0))


def test_a_baseline_is_told_the_level_of_each_image(run, pictures, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        test_script, "denoise_classically", lambda name, y, sigma: told.append((name, 255 * sigma)) or y
    )
    out = ok(run("test", f"--baseline nlm --data {pictures}/gray {LEVELS['hg']} --json {tmp_path}/r.json"))
    rows = json.loads((tmp_path / "r.json").read_text())["images"]
    assert (
        told == [("nlm", pytest.approx(row["noise_level"]["true"])) for row in rows]
        and len({level for _, level in told}) > 5
    )
    assert "nlm: told the true level" in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--baseline nlm --data P/gray --clean P/gray", "--protocol published only"),
        ("--baseline median --data P/gray --noise awgn --sigma 25", "invalid choice"),
        ("--baseline nlm --data P/small.png --noise awgn --sigma 25", "9x9"),
        ("--baseline bm3d --data P/gray --noise awgn --sigma 25", "pip install bm3d"),
    ],
)
def test_what_baselines_refuse(line, words, run, pictures, tmp_path, monkeypatch):
    (tmp_path / "gray").symlink_to(pictures / "gray")
    Image.fromarray(np.zeros((8, 20), np.uint8)).save(tmp_path / "small.png")

    def version(package):
        if package == "bm3d":
            raise importlib.metadata.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(utils.baselines, "version", version)
    code, _, err = run("test", line.replace("P/", f"{tmp_path}/"))
    assert code == 2 and err.count("error:") == 1 and words in err and "--baseline" in err


def test_results_tell_where_they_come_from(run, models, pictures, tmp_path):
    for name in ("s1", "s2"):
        shutil.copytree(models / name, tmp_path / name)
    line = f"--checkpoint s1 s2 --baseline nlm --data {pictures}/gray/0.png {LEVELS['awgn']} --tile 32 --amp off"
    ok(run("test", f"{line} --json {tmp_path}/r.json"))
    table = json.loads((tmp_path / "r.json").read_text())
    assert list(table["mean"]) == ["noisy", "nlm", "mu", "posterior", "distilled"]
    assert (
        table["arguments"][:3] == ["--checkpoint", "s1", "s2"]
        and table["code"] == code_version()
        and table["threads"] >= 1
        and table["device"]
    )
    assert (
        set(table["seconds_per_image"]) == {"nlm", *table["checkpoints"]}
        and "true noise level" in table["baselines"]["nlm"]
    )
    first, second = table["models"]
    assert [m["file"] for m in table["models"]] == table["checkpoints"]
    assert first["sha256"] == subprocess.check_output(["sha256sum", first["file"]], text=True).split()[0]
    assert first["methods"] == {"mu": "mu", "posterior": "posterior"} and second["methods"] == {
        "distilled": "distilled"
    }
    assert first["config"]["width"] == 4 and first["step"] == 1 and first["tiled"] and first["precision"] == "float32"
    facts = first["training"]
    assert (
        facts["clean"] == ["gray"]
        and facts["sigma"] == [25, 25]
        and facts["noise_draw"] == "fixed"
        and facts["batch_size"] == 2
        and "device" not in facts
    )
    assert second["training"]["teacher"] == "s1" and second["training"]["noisy"] == ["gray"]


def test_released_weights_keep_how_they_were_trained(models, tmp_path):
    release.main(
        ["--run", str(models / "s1"), "--as", "half", "--checkpoints-dir", str(tmp_path), "--trained-on", "one second"]
    )
    source, half = (
        load_checkpoint(models / "s1" / "last.safetensors").values,
        load_checkpoint(tmp_path / "half.safetensors").values,
    )
    assert training_facts(half) == training_facts(source) | {"trained_on": "one second"}
    assert str(models) not in json.dumps(half) and half["training"]["sigma_n"] == source["options"]["sigma_n"]
    assert (
        training_facts({name: half[name] for name in ("config", "white_level", "step")}) is None
    )  # released before the facts were kept


def test_the_codes_version(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")

    def git(*a):
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *a], cwd=tmp_path, check=True, capture_output=True
        )

    assert code_version(tmp_path) is None
    git("init", "-q")
    assert code_version(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    clean = code_version(tmp_path)
    assert len(clean) >= 7 and set(clean) <= set("0123456789abcdef")
    (tmp_path / "other").write_text("untracked files do not count")
    assert code_version(tmp_path) == clean
    for name in ("results/a.json", "docs/a.png", "checkpoints/a.safetensors", "page.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one")
    git("add", ".")
    git("commit", "-qm", "two")
    clean = code_version(tmp_path)
    for name in ("results/a.json", "docs/a.png", "checkpoints/a.safetensors", "page.md"):
        (tmp_path / name).write_text("measured")
    assert code_version(tmp_path) == clean
    (tmp_path / "file").write_text("two")
    assert code_version(tmp_path) == f"{clean}-dirty"
    (tmp_path / "inner").mkdir()
    assert code_version(tmp_path / "inner") is None  # a folder in somebody else's checkout


# ---------------------------------------------------------------------------------------- -- rendering


@pytest.fixture
def project(tmp_path, models, pictures, monkeypatch):
    """A folder laid out like this project, which is the working directory.

    It has tiny weights and three tiny pictures as its bsd68.
    """
    for folder in ("results", "docs", "checkpoints", "sets/bsd68", "sets/mine"):
        (tmp_path / folder).mkdir(parents=True)
    published = json.loads((ROOT / "results" / "published.json").read_text())
    published["tables"][0]["images"] = 3
    (tmp_path / "results" / "published.json").write_text(json.dumps(published))
    for name in ("s1", "s2"):
        release.main(
            [
                "--run",
                str(models / name),
                "--as",
                name,
                "--checkpoints-dir",
                str(tmp_path / "checkpoints"),
                "--trained-on",
                "one | second",
            ]
        )
    for k in range(3):
        Image.fromarray(camera()[40 * k : 40 * k + 16, 100:116]).save(tmp_path / "sets" / "bsd68" / f"{k}.png")
    shutil.copy(tmp_path / "sets" / "bsd68" / "0.png", tmp_path / "sets" / "mine" / "00_mean.png")
    Image.fromarray(camera()[1:17, 100:116]).save(tmp_path / "sets" / "mine" / "00_real.png")
    (tmp_path / "README.md").write_text("before\n<!-- results -->\nyesterday\n<!-- /results -->\nafter\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DBSN_DATA", "sets")
    return tmp_path


def measured(name: str, line: str) -> dict:
    test_script.main([*line.split(), "--json", f"results/{name}.json", "--device", "cpu", "--amp", "off"])
    return json.loads(Path("results", f"{name}.json").read_text())


def render(root: Path, *flags: str) -> int:
    return render_results.main(["--root", str(root), *flags])


def row_of(text: str, start: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(f"| {start}")).strip("| ").split(" | ")


def test_tables_are_rendered_from_results(project, capsys):
    plain = measured("a", "--checkpoint s1 s2 --baseline nlm --data bsd68 --noise awgn --sigma 25")["mean"]
    eight = measured("b", "--checkpoint s1 s2 --self-ensemble --data bsd68 --noise awgn --sigma 25")["mean"]
    other = measured("c", "--data bsd68 --noise awgn --sigma 35")["mean"]
    real = measured("d", "--data sets/mine/*_real.png --clean sets/mine/*_mean.png")["mean"]
    (project / "results" / "benchmark.json").write_text('[{"seconds": 1}]')  # of another script
    assert render(project, "--check") == 1 and not (project / "docs" / "results.md").exists()
    assert render(project) == 0 and render(project, "--check") == 0
    text, readme = (project / "docs" / "results.md").read_text(), (project / "README.md").read_text()

    dB = lambda mean, name: f"{mean[name]['psnr']:.2f}"  # noqa: E731
    head = row_of(text, "noise")
    row = dict(zip(head, row_of(text, "AWGN 25")))
    assert (
        row["model"] == "s1, s2"
        and row["noisy"] == dB(plain, "noisy")
        and row["NLM*"] == dB(plain, "nlm")
        and row["mu"] == dB(plain, "mu")
    )
    assert (
        row["posterior"] == dB(plain, "posterior")
        and row["posterior x8"] == dB(eight, "posterior")
        and row["distilled x8"] == dB(eight, "distilled")
    )
    assert (
        row["wavelet*"] == row["BM3D*"] == "not measured" and row["*BM3D*"] == "*28.57*" and row["*N2V*"] == "*27.71*"
    )
    row = dict(zip(head, row_of(text, "AWGN 50")))
    assert (
        row["model"] == "-"
        and set(list(row.values())[2:11]) == {"not measured"}
        and row["*N2V*"] == "-"
        and row["*full*"] == "*26.51*"
    )
    assert row_of(text, "AWGN 35")[2] == dB(other, "noisy")  # no such row was published
    assert f"{dB(real, 'noisy')} / {real['noisy']['ssim']:.4f}" in text
    assert "--checkpoint s1 s2 --baseline nlm --data bsd68" in text
    weights = load_checkpoint("checkpoints/s1.safetensors").values["training"]
    models = row_of(text, "s1")
    assert models[1] == f"`{subprocess.check_output(['sha256sum', 'checkpoints/s1.safetensors'], text=True)[:12]}`"
    assert (
        models[4] == "clean gray"
        and models[5] == "awgn sigma 25"
        and models[6] == "fixed"
        and weights["trained_on"] in text.replace("\\|", "|")
    )

    assert (
        readme.startswith("before\n<!-- results -->")
        and readme.endswith("<!-- /results -->\nafter\n")
        and "yesterday" not in readme
    )
    head = row_of(readme, "noise")
    row = dict(zip(head, row_of(readme, "AWGN 25")))
    assert len(head) == 7 and row["noisy"] == dB(plain, "noisy") and row["BM3D"] == "-"
    assert row["ours: stage 1"] == dB(plain, "posterior") and row["ours: student"] == dB(plain, "distilled")
    assert row["paper: D-BSN"] == "28.88" and row["paper: full"] == "29.38"
    assert row_of(readme, "AWGN 35")[1:] == [dB(other, "noisy"), *"-----"]
    assert "AWGN 50" not in readme and "**CBSD68, colour**: not measured." in readme
    runs = text[text.index("## Runs") :]
    assert (
        row_of(runs, "file")[-1] == "level off by"
        and row_of(runs, "[a.json]")[-1].endswith("%")
        and row_of(runs, "[c.json]")[-1] == "-"
    )
    capsys.readouterr()

    table = json.loads((project / "results" / "c.json").read_text())
    table["mean"]["noisy"]["psnr"] += 1
    (project / "results" / "c.json").write_text(json.dumps(table))
    before = {f: f.read_bytes() for f in project.rglob("*.md")}
    assert render(project, "--check") == 1 and {f: f.read_bytes() for f in project.rglob("*.md")} == before
    out = capsys.readouterr().out
    assert "docs/results.md is out of date" in out and "README.md is out of date" in out


def test_the_readme_names_the_models_of_a_row_where_there_are_several(project):
    means = [
        measured(name, f"--checkpoint {name} --data bsd68 --noise awgn --sigma 25")["mean"] for name in ("s1", "s2")
    ]
    render(project)
    readme = (project / "README.md").read_text()
    assert (
        row_of(readme, "AWGN 25, s1")[3] == f"{means[0]['posterior']['psnr']:.2f}"
        and row_of(readme, "AWGN 25, s1")[5] == "-"
    )
    assert (
        row_of(readme, "AWGN 25, s2")[5] == f"{means[1]['distilled']['psnr']:.2f}"
        and row_of(readme, "AWGN 25, s2")[3] == "-"
    )


def test_weights_from_before_point_to_their_card(project):
    source = load_checkpoint("checkpoints/s1.safetensors")
    save_checkpoint(
        "checkpoints/old.safetensors",
        "stage1",
        source.tensors,
        {name: source.values[name] for name in ("config", "white_level", "step")},
    )
    (project / "checkpoints" / "old.md").write_text("a card")
    measured("a", "--checkpoint old --data bsd68 --noise awgn --sigma 25")
    render(project)
    row = row_of((project / "docs" / "results.md").read_text(), "[old](../checkpoints/old.md)")
    assert row[4] == row[5] == row[-1] == "see card" and row[-2] == "1"


def test_what_rendering_refuses(project):
    line = "--data bsd68 --noise awgn --sigma 25"
    (project / "results" / "a.json").write_text("{")
    refused(project, "a.json is no JSON")
    table = measured("a", f"--checkpoint s1 {line}")
    table["mean"]["noisy"]["psnr"] += 0.1
    (project / "results" / "b.json").write_text(json.dumps(table))
    refused(project, "keep one of them")
    for change, words in (
        ({"models": None}, "does not tell which weights"),
        ({"skipped": {"01.png": "damaged"}}, "skipped"),
        ({"arguments": ["--data", "/home/me/bsd68"]}, "/home/me/bsd68 of one machine"),
    ):
        changed = {key: value for key, value in (table | change).items() if value is not None}
        (project / "results" / "b.json").write_text(json.dumps(changed))
        refused(project, words)
    (project / "results" / "b.json").unlink()
    assert render(project) == 0
    for name, sha in (("b", "0" * 64), ("c", "1" * 64)):  # a run that went on training between two measurements
        model = table["models"][0] | {"file": "checkpoints/run/last.safetensors", "sha256": sha}
        (project / "results" / f"{name}.json").write_text(
            json.dumps(table | {"models": [model], "noise": {"model": "awgn", "sigma": 15}})
        )
    refused(project, "c.json was measured with other weights")
    for name in "bc":
        (project / "results" / f"{name}.json").unlink()
    release.main(["--run", "checkpoints/s1.safetensors", "--as", "s1", "--trained-on", "another day"])
    refused(project, "other weights than those now in checkpoints/s1.safetensors")
    (project / "results" / "a.json").unlink()
    (project / "README.md").write_text("no markers")
    refused(project, "markers")


def refused(project: Path, words: str):
    with pytest.raises(RunError, match=words):
        render(project)


def test_tables_in_this_project_are_up_to_date(capsys):
    assert render(ROOT, "--check") == 0, capsys.readouterr().out


# ------------------------------------------------------------------------------------ real photographs


def test_noisy_and_clean_photographs_are_paired_by_patterns(run, tmp_path):
    """CC's names: .._real.png and .._mean.png; the clean image of each noisy one is found by the order of names."""
    random = np.random.default_rng(0)
    for k in range(3):
        clean = random.integers(40, 200, (12, 14, 3))
        Image.fromarray(clean.astype(np.uint8)).save(tmp_path / f"camera_{k}_mean.png")
        Image.fromarray((clean + k + 1).astype(np.uint8)).save(tmp_path / f"camera_{k}_real.png")
    ok(run("test", f"--data {tmp_path}/*_real.png --clean {tmp_path}/*_mean.png --json {tmp_path}/r.json"))
    rows = json.loads((tmp_path / "r.json").read_text())["images"]
    assert [row["noisy"]["psnr"] for row in rows] == pytest.approx(
        [20 * np.log10(255 / (k + 1)) for k in range(3)], abs=1e-3
    )


@pytest.mark.slow
def test_noisy_input_of_cc(run, tmp_path):
    ok(run("test", f"--data cc15 --clean cc15_clean --data-root {real_data('cc15')} --json {tmp_path}/r.json"))
    table = json.loads((tmp_path / "r.json").read_text())
    assert len(table["images"]) == 15 and table["mean"]["noisy"]["psnr"] == pytest.approx(33.41, abs=0.005)
