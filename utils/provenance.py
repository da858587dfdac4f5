"""Where a result comes from: the commit of the code, and how a checkpoint was trained."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from options.records import NO_FACTS

ROOT = Path(__file__).resolve().parents[1]


def code_version(root: Path = ROOT) -> str | None:
    """The commit of the code at root.

    It has "-dirty" after it where tracked files other than results, pages and weights differ. None where root is no git
    checkout of its own, or git is missing.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "--no-optional-locks", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    if not (root / ".git").exists():  # a folder, or a file in a linked work tree
        return None
    try:
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results", ":!docs", ":!checkpoints", ":!*.md"
        )
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def training_facts(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a checkpoint of these values was trained: the options of its run by name.

    Those that were not given and the folders of this machine are left out. Released weights keep the facts themselves;
    None for those that were made before they did.
    """
    if "options" not in values:
        return values.get("training")
    return {
        name: without_folder(value)
        for name, value in values["options"].items()
        if name not in NO_FACTS and value is not None
    }


def without_folder(value: Any) -> Any:
    """Absolute paths become their last part; everything else stays."""
    if isinstance(value, list):
        return [without_folder(v) for v in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
