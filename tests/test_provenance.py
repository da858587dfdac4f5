"""The version of the code that a figure is from."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from utils.provenance import code_version


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
