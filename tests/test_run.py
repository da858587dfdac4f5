"""A run's folder has one process at a time and the same options.

Its states survive damage, and its statistics have no gap.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.helpers import script
from utils.checkpoint import load_checkpoint
from utils.errors import RunError, UsageError
from utils.files import atomic_path
from utils.run import RunFolder


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path: Path, warnings: list[str]):
    with RunFolder(tmp_path / "runs" / "gray", keep=2, warn=warnings.append) as folder:
        yield folder


def names(folder: RunFolder) -> list[str]:
    return sorted(file.name for file in folder.path.iterdir() if file.name != ".lock")


def save_steps(folder: RunFolder, *steps: int) -> None:
    for step in steps:
        folder.save_state(step, {"x": torch.full((3,), float(step))}, {"seed": 1})


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def one_line(caught: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_second_process_waits_for_the_first_to_die(tmp_path: Path):
    """Also with a loader worker of the first that outlives it."""
    first = script(
        "import os, sys, time\n"
        "from utils.run import RunFolder\n"
        "with RunFolder(sys.argv[1]):\n"
        "    worker = os.fork() or (time.sleep(60), os._exit(0))\n"
        "    print(worker, flush=True)\n"
        "    time.sleep(60)\n",
        tmp_path / "run",
    )
    worker = int(first.stdout.readline())
    try:
        with (
            pytest.raises(UsageError, match=f"in use by process {first.pid} on .* another --name") as caught,
            RunFolder(tmp_path / "run"),
        ):
            pass
        one_line(caught)
        first.kill()
        first.wait()
        os.kill(worker, 0)  # alive
        with RunFolder(tmp_path / "run"):
            pass
    finally:
        first.kill()
        os.kill(worker, signal.SIGKILL)
        first.communicate()


def test_lock_is_free_after_the_with_block(run: RunFolder):
    with pytest.raises(UsageError, match=f"process {os.getpid()} "), RunFolder(run.path):
        pass
    run.__exit__()
    with RunFolder(run.path):
        pass


def test_file_system_without_locks(tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch):
    def flock(descriptor: int, operation: int):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunFolder(tmp_path / "run", warn=warnings.append) as folder:
        save_steps(folder, 1)
    assert len(warnings) == 1 and "no locks" in warnings[0]


@pytest.mark.parametrize("below", ["", "name", "deeper/name"])
def test_a_file_in_the_way(tmp_path: Path, below: str):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file") as caught, RunFolder(tmp_path / "file" / below):
        pass
    one_line(caught)


@pytest.mark.parametrize(
    ("error", "kind"), [(errno.EACCES, UsageError), (errno.EROFS, UsageError), (errno.ENOSPC, RunError)]
)
def test_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, kind: type[Exception]
):
    def refuse(path: Path, *arguments, **named):
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(kind, match=os.strerror(error)) as caught, RunFolder(tmp_path / "run"):
        pass
    one_line(caught)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError), RunFolder(tmp_path / "run"):
        pass


def test_only_our_unfinished_files_are_cleared(run: RunFolder):
    ours = [
        ".options.json.ab12cd34.tmp",
        ".stats.jsonl.x_.tmp",
        ".state-00000003.safetensors.5f.tmp",
        ".last.safetensors.zz.tmp",
    ]
    others = ["notes.tmp", ".notes.txt.ab.tmp", "state-1.tmp", ".last.safetensors.tmp"]
    run.__exit__()
    for name in ours + others:
        (run.path / name).touch()
    with RunFolder(run.path) as again:
        assert names(again) == sorted(others)


def test_a_killed_save_is_cleared(run: RunFolder):
    """Whatever the atomic writer calls its temporary files."""
    left = []
    for name in ["options.json", "stats.jsonl", "state-00000001.safetensors", "last.safetensors"]:
        with atomic_path(run.path / name) as temporary:
            Path(temporary).touch()
            left.append(Path(temporary))
    for file in left:
        file.touch()
    run.__exit__()
    with RunFolder(run.path) as again:
        assert len(names(again)) == 4 and not any(file.exists() for file in left)


def test_options_are_recorded_and_compared(run: RunFolder):
    options = {"sigma": 25, "noise_draw": "fixed", "lr": 1e-4, "crop": (48, 48), "log_every": 10, "name": None}
    run.check_options(options, ignore=frozenset({"log_every"}))
    text = (run.path / "options.json").read_text()
    assert list(json.loads(text)) == sorted(options) and '\n  "sigma": 25\n' in text
    run.check_options(options, ignore=frozenset({"log_every"}))
    run.check_options({**options, "log_every": 50}, ignore=frozenset({"log_every"}))
    assert json.loads((run.path / "options.json").read_text())["log_every"] == 50

    before = (run.path / "options.json").read_bytes()
    with pytest.raises(UsageError) as caught:
        run.check_options(
            {**options, "sigma": 50, "noise_draw": "fresh", "crop": [64, 48], "log_every": 1},
            ignore=frozenset({"log_every"}),
        )
    message = one_line(caught)
    assert "--crop was [48, 48], now [64, 48]; --noise-draw was fixed, now fresh; --sigma was 25, now 50;" in message
    assert "--lr" not in message and "log" not in message
    assert "another --name, or delete the folder" in message
    assert (run.path / "options.json").read_bytes() == before


@pytest.mark.parametrize(
    ("older", "today"),
    [
        ({"loss": "envelope", "estimator": "cnn"}, "envelope"),
        ({"loss": "envelope", "estimator": "residual"}, "residual"),
        ({"loss": "split", "estimator": "cnn"}, "split"),
        ({"loss": "constrained"}, "constrained"),
    ],
)
def test_a_record_of_loss_and_estimator(run: RunFolder, older: dict, today: str):
    (run.path / "options.json").write_text(json.dumps({"sigma": 25, **older}))
    assert run.recorded_options() == {"sigma": 25, "sigma_n": today}
    run.check_options({"sigma": 25, "sigma_n": today})
    with pytest.raises(UsageError, match=f"--sigma-n was {today}, now reward; "):
        run.check_options({"sigma": 25, "sigma_n": "reward"})


def test_options_that_an_older_version_did_not_have(run: RunFolder):
    run.check_options({"sigma": 25, "old": 3})
    with pytest.raises(UsageError, match=r"--mdc was absent, now paper"):
        run.check_options({"sigma": 25, "old": 3, "mdc": "paper"})
    with pytest.raises(UsageError, match=r"--mdc was release, now paper"):
        run.check_options({"sigma": 25, "old": 3, "mdc": "paper"}, defaults={"mdc": "release"})
    with pytest.raises(UsageError, match=r"--old was 3, now absent"):
        run.check_options({"sigma": 25})
    run.check_options({"sigma": 25, "old": 3, "mdc": "release"}, defaults={"mdc": "release"})
    assert json.loads((run.path / "options.json").read_text())["mdc"] == "release"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sigma": 2', "\xff"])
def test_broken_options_file(run: RunFolder, text: str):
    (run.path / "options.json").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"options\.json is not a record of options") as caught:
        run.check_options({"sigma": 25})
    one_line(caught)


def test_states_keep_the_newest(run: RunFolder):
    assert run.load_state() is None
    save_steps(run, 5, 10, 100)
    assert names(run) == ["state-00000010.safetensors", "state-00000100.safetensors"]
    state = run.load_state()
    assert state.values == {"seed": 1, "step": 100} and state.tensors["x"].tolist() == [100.0] * 3
    save_steps(run, 99_999_999, 100_000_000)  # beyond eight digits, where names no longer sort by step
    assert run.load_state().values["step"] == 100_000_000
    with pytest.raises(ValueError):
        RunFolder(run.path, keep=0)


def test_folder_without_a_state_starts_at_step_0(run: RunFolder):
    run.check_options({"sigma": 25})
    run.append_stats({"step": 1})
    assert run.load_state() is None


def test_damaged_state_is_moved_aside(run: RunFolder, warnings: list[str]):
    save_steps(run, 10, 20)
    damage(run.path / "state-00000020.safetensors")
    assert run.load_state().values["step"] == 10
    assert len(warnings) == 1 and "state-00000020.safetensors" in warnings[0] and "\n" not in warnings[0]
    assert names(run) == ["state-00000010.safetensors", "state-00000020.safetensors.damaged"]
    assert run.load_state().values["step"] == 10 and len(warnings) == 1
    save_steps(run, 15, 20)
    assert names(run) == [
        "state-00000015.safetensors",
        "state-00000020.safetensors",
        "state-00000020.safetensors.damaged",
    ]
    assert run.load_state().values["step"] == 20


def test_all_states_damaged(run: RunFolder, warnings: list[str]):
    save_steps(run, 10, 20)
    damage(run.path / "state-00000010.safetensors")
    (run.path / "state-00000020.safetensors").write_bytes(b"")
    for _ in range(2):  # a second start must not begin again at step 0 without a word
        with pytest.raises(
            RunError, match=r"state-00000010.*state-00000020.*delete the folder to start over"
        ) as caught:
            run.load_state()
        one_line(caught)
    assert len(warnings) == 2


def test_state_of_a_newer_version_stays_where_it_is(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("utils.checkpoint.FORMAT_VERSION", 2)
    save_steps(run, 1, 2)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="update the code"):
        run.load_state()
    assert len(names(run)) == 2


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_keeps_the_older_states(run: RunFolder, monkeypatch: pytest.MonkeyPatch, call: str):
    def fail(*arguments, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save_steps(run, 1, 2)
    before = names(run)
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(RunError, match="No space left") as caught:
        save_steps(run, 3)
    one_line(caught)
    monkeypatch.undo()
    assert names(run) == before
    assert run.load_state().values["step"] == 2


def test_warnings_go_to_stderr_by_default(tmp_path: Path, capsys: pytest.CaptureFixture):
    with RunFolder(tmp_path / "run") as folder:
        save_steps(folder, 1, 2)
        damage(tmp_path / "run" / "state-00000002.safetensors")
        folder.load_state()
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: ") and captured.err.count("\n") == 1 and not captured.out


def test_weights(run: RunFolder):
    assert (
        run.save_weights("last", "stage1", {"x": torch.ones(2)}, {"config": {"width": 8}})
        == run.path / "last.safetensors"
    )
    assert load_checkpoint(run.path / "last.safetensors", "stage1").values == {"config": {"width": 8}}
    assert run.load_state() is None


def lines(folder: RunFolder) -> list[str]:
    return (folder.path / "stats.jsonl").read_text().splitlines()


def test_statistics_are_json_lines(run: RunFolder):
    run.append_stats(
        {"step": 1, "loss": 0.1, "a": float("nan"), "list": [1, float("inf"), {"x": -float("inf")}], "text": "é"}
    )
    assert lines(run) == ['{"step": 1, "loss": 0.1, "a": null, "list": [1, null, {"x": null}], "text": "\\u00e9"}']
    for row in [{"loss": 1.0}, {"step": "1"}, {"step": 2, "loss": torch.ones(())}]:
        with pytest.raises((TypeError, ValueError)):
            run.append_stats(row)
    assert len(lines(run)) == 1


def test_truncation_makes_a_killed_run_equal_to_one_never_killed(run: RunFolder, warnings: list[str]):
    for step in range(1, 9):
        run.append_stats({"step": step, "loss": 1 / step})
    never_killed = (run.path / "stats.jsonl").read_bytes()
    for kept in range(-1, 9):
        for length in range(0, len(never_killed), 7):
            (run.path / "stats.jsonl").write_bytes(never_killed[:length])
            run.truncate_stats(kept)
            complete = never_killed[:length].count(b"\n")
            assert len(lines(run)) == max(0, min(kept, complete))
    (run.path / "stats.jsonl").write_bytes(never_killed[:-9])
    run.truncate_stats(4)
    for step in range(5, 9):
        run.append_stats({"step": step, "loss": 1 / step})
    assert (run.path / "stats.jsonl").read_bytes() == never_killed
    assert names(run) == ["stats.jsonl"] and not warnings


def test_truncation_without_a_file_or_with_unreadable_lines(run: RunFolder, warnings: list[str]):
    run.truncate_stats(-1)
    assert names(run) == []
    (run.path / "stats.jsonl").write_bytes(
        b'{"step": 1}\n\0\0\0\n[]\n{"step": null}\n{"step": 2, "x": "\xc3\xa9"}\n{"st'
    )
    run.truncate_stats(2)
    assert (run.path / "stats.jsonl").read_bytes() == b'{"step": 1}\n{"step": 2, "x": "\xc3\xa9"}\n'
    assert len(warnings) == 1 and "3 unreadable lines" in warnings[0]


def test_statistics_on_a_full_disk(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    def full(self: Path, *arguments, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RunError, match=r"stats\.jsonl: No space left") as caught:
        run.append_stats({"step": 1})
    one_line(caught)
