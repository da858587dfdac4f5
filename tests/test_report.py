"""What test.py --json tells of where a figure comes from."""

from __future__ import annotations

import json
import shutil
import subprocess

from tests.helpers import LEVELS, ok
from utils.provenance import code_version


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
