"""A run's folder has one process at a time and the same options.

Its states survive damage, its statistics have no gap, and it stops on a signal.
"""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import RunError, StopRequest, UsageError
from utils.files import atomic_path
from utils.optim import load_optimizer_tensors, optimizer_tensors
from utils.run import RunFolder

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent


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


# One process at a time


def script(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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


# Options


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


# States


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


# Statistics


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


# Optimizers


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3)).to(memory_format=torch.channels_last)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "SGD without state": lambda p: torch.optim.SGD(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_three_steps_saved_and_three_more_are_six(tmp_path: Path, kind: str):
    whole = network()
    train(whole, OPTIMIZERS[kind](whole.parameters()), range(6))

    first = network()
    optimizer = OPTIMIZERS[kind](first.parameters())
    train(first, optimizer, range(3))
    tensors = {f"model.{name}": tensor for name, tensor in first.state_dict().items()}
    save_checkpoint(
        tmp_path / "x.safetensors",
        "training-state",
        {**tensors, **optimizer_tensors(optimizer, first.named_parameters())},
        {},
    )

    second = network()
    other = OPTIMIZERS[kind](second.parameters())
    train(second, other, range(7, 9))  # a state of its own, which loading has to replace
    stored = load_checkpoint(tmp_path / "x.safetensors").tensors
    second.load_state_dict(
        {name.removeprefix("model."): tensor for name, tensor in stored.items() if name.startswith("model.")}
    )
    load_optimizer_tensors(other, second.named_parameters(), stored)
    for mine, theirs in zip(first.parameters(), second.parameters()):
        assert optimizer.state[mine].keys() == other.state[theirs].keys()
        for entry, value in optimizer.state[mine].items():
            loaded = other.state[theirs][entry]
            assert loaded.dtype == value.dtype and loaded.stride() == value.stride() and torch.equal(loaded, value)
    train(second, other, range(3, 6))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("arguments", [{}, {"fused": True}, {"foreach": True, "capturable": True}], ids=str)
def test_state_lies_where_the_optimizer_had_it(arguments: dict[str, bool]):
    model = network().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), **arguments)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    stored = {name: tensor.cpu() for name, tensor in optimizer_tensors(optimizer, model.named_parameters()).items()}
    devices = {name: tensor.device for name, tensor in optimizer_tensors(optimizer, model.named_parameters()).items()}
    load_optimizer_tensors(optimizer, model.named_parameters(), stored)
    assert {
        name: tensor.device for name, tensor in optimizer_tensors(optimizer, model.named_parameters()).items()
    } == devices
    optimizer.step()


def test_names_of_optimizer_tensors():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    assert optimizer_tensors(optimizer, model.named_parameters()) == {}
    train(model, optimizer, range(1))
    keys = {
        f"optimizer.{entry}.{name}"
        for entry in ("step", "exp_avg", "exp_avg_sq")
        for name in ("0.weight", "0.bias", "2.weight", "2.bias")
    }
    assert set(optimizer_tensors(optimizer, model.named_parameters())) == keys


def test_parameters_without_a_state_stay_without():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model[0].requires_grad_(False)
    train(model, optimizer, range(2))
    stored = optimizer_tensors(optimizer, model.named_parameters())
    assert len(stored) == 6
    model[0].requires_grad_(True)
    train(model, optimizer, range(2))
    load_optimizer_tensors(optimizer, model.named_parameters(), stored)
    assert set(optimizer.state) == {model[2].weight, model[2].bias}
    load_optimizer_tensors(optimizer, model.named_parameters(), {})
    assert len(optimizer.state) == 0


def test_loaded_state_is_a_copy_in_its_own_dtype():
    model = network().to(torch.bfloat16)
    optimizer = torch.optim.Adam(model.parameters())
    stored = {"optimizer.step.0.bias": torch.tensor(3.0), "optimizer.exp_avg.0.bias": torch.full((4,), 0.1)}
    load_optimizer_tensors(optimizer, model.named_parameters(), stored)
    state = optimizer.state[model[0].bias]
    assert state["exp_avg"].dtype == torch.float32
    state["exp_avg"].zero_()
    state["step"] += 1
    assert stored["optimizer.step.0.bias"] == 3 and stored["optimizer.exp_avg.0.bias"][0] == torch.tensor(0.1)


def test_plain_numbers_keep_their_types():
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters())
    numbers = {"count": 2**40 + 1, "scale": 0.1, "done": True}
    optimizer.state[model.weight] = dict(numbers)
    stored = optimizer_tensors(optimizer, model.named_parameters())
    optimizer.state.clear()
    load_optimizer_tensors(optimizer, model.named_parameters(), stored)
    loaded = optimizer.state[model.weight]
    assert loaded == numbers and [type(loaded[name]) for name in numbers] == [int, float, bool]
    optimizer.state[model.weight] = {"history": []}
    with pytest.raises(TypeError, match="history of weight"):
        optimizer_tensors(optimizer, model.named_parameters())


def test_optimizer_state_of_another_model():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(UsageError, match=r"exp_avg of 5\.weight"):
        load_optimizer_tensors(optimizer, model.named_parameters(), {"optimizer.exp_avg.5.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="4 parameters, of which 1 are named"):
        optimizer_tensors(optimizer, [("0.bias", model[0].bias)])
    frozen = [*model.named_parameters(), ("frozen", nn.Parameter(torch.ones(1)))]
    assert optimizer_tensors(optimizer, frozen) == {}


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_a_request(number: int, capfd: pytest.CaptureFixture):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == f"{number.name}: finishing the step and saving; signal again to end at once\n"


def test_second_signal_ends_the_process_and_workers_outlive_ctrl_c():
    process = script(
        "import os, signal, time\n"
        "from utils.errors import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    worker = os.fork()\n"
        "    if not worker:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "        os._exit(0)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]), flush=True)\n"
        "    while not stop.requested:\n"
        "        time.sleep(0.01)\n"
        "    print('requested', flush=True)\n"
        "    time.sleep(60)\n"
    )
    assert process.stdout.readline() == f"-{int(signal.SIGTERM)}\n"  # the worker, silently
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "requested\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM and time.monotonic() - started < 30
    assert process.communicate()[1].count("\n") == 1


def test_other_threads_install_nothing():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
