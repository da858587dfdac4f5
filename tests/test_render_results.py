"""The tables that are rendered from results."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from skimage.data import camera

import test as test_script
from scripts import release, render_results
from tests.helpers import ROOT
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import RunError


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


def test_a_student_is_replaced_and_its_teachers_figures_stay(project):
    line = "--data bsd68 --noise awgn --sigma 25"
    student = Path("checkpoints/s1-full.safetensors")
    source = load_checkpoint("checkpoints/s2.safetensors")
    save_checkpoint(student, "stage2", source.tensors, source.values)
    before = measured("a", f"--checkpoint s1 s1-full {line}")["mean"]
    eight = measured("c", f"--checkpoint s1 s1-full {line} --self-ensemble")["mean"]
    tensors = source.tensors | {"last.weight": source.tensors["last.weight"] + 1}
    save_checkpoint(student, "stage2", tensors, source.values)
    after = measured("b", f"--checkpoint s1-full {line}")["mean"]
    render(project)
    text = (project / "docs" / "results.md").read_text()
    row = dict(zip(row_of(text, "noise"), row_of(text, "AWGN 25")))
    assert row["model"] == "s1, s1-full"
    assert row["posterior"] == f"{before['posterior']['psnr']:.2f}"
    assert row["posterior x8"] == f"{eight['posterior']['psnr']:.2f}" and "distilled x8" not in row
    assert row["distilled"] == f"{after['distilled']['psnr']:.2f}" != f"{before['distilled']['psnr']:.2f}"
    Path("results/a.json").unlink()
    save_checkpoint("checkpoints/s1.safetensors", "stage2", tensors, source.values)
    refused(project, "c.json was measured with other weights")


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
