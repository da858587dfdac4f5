"""Checkpoints: what is saved is what is loaded, anything else is refused in one line, and nothing is ever executed."""

import errno
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from utils import checkpoint as module
from utils.checkpoint import DamagedCheckpoint, canonical, checksum, load_checkpoint, plain, save_checkpoint
from utils.errors import RunError, UsageError
from utils.files import atomic_write_text

torch.set_num_threads(1)
VALUES = {
    "config": {"width": 24, "mdc": "release", "scale": 0.1},
    "step": 7,
    "names": ["a", "é"],
    "none": None,
    "yes": True,
}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "head.weight": torch.randn(4, 3, generator=generator),
        "head.bias": torch.randn(4, generator=generator),
        "count": torch.tensor(5),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, "stage1", tensors(), VALUES)
    return path


def refusal(path: Path, error: type[Exception] = UsageError, **arguments) -> str:
    """The message with which loading fails, which has to be one line that names the file."""
    with pytest.raises(error) as caught:
        load_checkpoint(path, **arguments)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def rewritten(path: Path, **changes) -> None:
    """Changes entries of a checkpoint's record and signs it anew, as another version of this project would."""
    data = path.read_bytes()
    record = json.loads(module.read_safetensors(path)[1])
    record.pop("sha256")
    record.update(changes)
    loaded = safetensors.torch.load(data)
    record["sha256"] = checksum(loaded, record)
    path.write_bytes(safetensors.torch.save(loaded, metadata={"dbsn": canonical(record)}))


def test_round_trip(saved: Path):
    loaded = load_checkpoint(saved, kind=("stage1", "stage2"))
    assert loaded.kind == "stage1" and loaded.values == VALUES and loaded.path == saved
    assert set(loaded.versions) == {"project", "torch", "python"}
    assert list(loaded.tensors) == sorted(tensors())
    for name, tensor in tensors().items():
        assert torch.equal(loaded.tensors[name], tensor)
    loaded.tensors["head.bias"].add_(1)  # memory of its own, not a read-only view of the file


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "int8", "bool"]
)
def test_dtypes_and_empty_shapes(tmp_path: Path, dtype: str):
    given = {str(shape): torch.ones(shape, dtype=getattr(torch, dtype)) for shape in [(), (3,), (2, 0, 3), (1, 2, 3)]}
    save_checkpoint(tmp_path / "x.safetensors", "stage1", given, {})
    loaded = load_checkpoint(tmp_path / "x.safetensors").tensors
    for name, tensor in given.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)


def test_no_tensors_at_all(tmp_path: Path):
    save_checkpoint(tmp_path / "x.safetensors", "stage1", {}, {"step": 0})
    assert load_checkpoint(tmp_path / "x.safetensors").values == {"step": 0}


def test_special_floats_keep_their_bits(tmp_path: Path):
    # NaN with a payload, infinity, -0.0, a denormal
    bits = torch.tensor([0x7FC00001, 0x7F800000, -0x80000000, 1], dtype=torch.int32)
    save_checkpoint(tmp_path / "x.safetensors", "stage1", {"x": bits.view(torch.float32)}, {})
    assert torch.equal(load_checkpoint(tmp_path / "x.safetensors").tensors["x"].view(torch.int32), bits)


def test_memory_formats_and_shared_storage(tmp_path: Path):
    image = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    shared = torch.arange(10.0)
    given = {
        "channels_last": image.to(memory_format=torch.channels_last),
        "transposed": image.transpose(0, 3),
        "expanded": torch.ones(1, 3).expand(4, 3),
        "whole": shared,
        "same": shared,
        "overlapping": shared[2:6],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    save_checkpoint(tmp_path / "x.safetensors", "stage1", given, {})
    save_checkpoint(
        tmp_path / "y.safetensors", "stage1", {name: tensor.detach().contiguous() for name, tensor in given.items()}, {}
    )
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()
    loaded = load_checkpoint(tmp_path / "x.safetensors").tensors
    for name, tensor in given.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].is_contiguous()


def test_same_contents_same_bytes(saved: Path, tmp_path: Path):
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, "stage1", dict(reversed(tensors().items())), dict(reversed(VALUES.items())))
    assert again.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {1: "a"}, {"a": {"b": torch.ones(1)}}, Path("x"), b"x", {1, 2}]
)
def test_values_that_are_not_plain(tmp_path: Path, value):
    with pytest.raises((TypeError, ValueError), match=r"values\.entry"):
        save_checkpoint(tmp_path / "x.safetensors", "stage1", {}, {"entry": value})
    assert not list(tmp_path.iterdir())


def test_tuples_become_lists():
    assert plain({"a": (1, [2, (3,)])}) == {"a": [1, [2, [3]]]}


# Damage


@pytest.mark.parametrize("tenth", range(10))
def test_truncated(saved: Path, tenth: int):
    data = saved.read_bytes()
    saved.write_bytes(data[: len(data) * tenth // 10])
    assert "restore it from a copy" in refusal(saved, DamagedCheckpoint)


def test_truncated_by_a_few_bytes_or_extended(saved: Path):
    data = saved.read_bytes()
    for altered in [data[:4], data[:8], data[:9], data[:-1], data + b"\0", data + data]:
        saved.write_bytes(altered)
        refusal(saved, DamagedCheckpoint)


def test_every_bit_of_the_header_and_many_of_the_data(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    # both have spellings that parse to the same value
    save_checkpoint(path, "stage1", tensors(), {"rate": 1e-05, "text": "é"})
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    bits = [*range(8 * header), *random.Random(0).sample(range(8 * header, 8 * len(data)), 40)]
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedCheckpoint):
            load_checkpoint(path)


def test_a_header_length_that_looks_like_a_pickle(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    for padding in range(800):  # until the first bytes are those of a pickle of protocol 2
        save_checkpoint(path, "stage1", {}, {"text": "x" * padding})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    data = path.read_bytes()
    assert data[:2] == b"\x80\x02"
    load_checkpoint(path)
    for altered in [data[:8], data[:9], data[:300], data[:8] + b"z" + data[9:]]:
        path.write_bytes(altered)
        refusal(path, DamagedCheckpoint)


@pytest.mark.parametrize("name", ["last.safetensors", "last.pth"])
def test_empty_file(tmp_path: Path, name: str):
    path = tmp_path / name
    path.touch()
    assert "empty" in refusal(path, DamagedCheckpoint)


def hostile_files() -> dict[str, bytes]:
    def with_header(header: bytes) -> bytes:
        return len(header).to_bytes(8, "little") + header + b"\0" * 16

    tensor = b'"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    return {
        "noise": random.Random(1).randbytes(5000),
        "text": b"not a checkpoint at all\n" * 10,
        "nested": with_header(b'{"a":' * 50_000),
        "huge length": (2**63).to_bytes(8, "little") + b"{}",
        "length beyond the limit": (200_000_000).to_bytes(8, "little") + b"{}",
        "metadata is a list": with_header(b'{"__metadata__":[]}'),
        "metadata is a number": with_header(b'{"__metadata__":{"dbsn":5}}'),
        "record is a list": with_header(b'{"__metadata__":{"dbsn":"[]"},' + tensor + b"}"),
        "record is nested": with_header(b'{"__metadata__":{"dbsn":"' + b"[" * 50_000 + b'"}}'),
        "record has NaN": with_header(b'{"__metadata__":{"dbsn":"{\\"sha256\\":NaN}"}}'),
        "unknown dtype": with_header(
            b'{"__metadata__":{"dbsn":"{}"},"x":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}'
        ),
        "endless shape": with_header(
            b'{"__metadata__":{"dbsn":"{}"},"x":{"dtype":"F32","shape":[0,4611686018427387904,8],"data_offsets":[0,0]}}'
        ),
    }


@pytest.mark.parametrize("case", hostile_files())
def test_garbage(tmp_path: Path, case: str):
    path = tmp_path / "last.safetensors"
    path.write_bytes(hostile_files()[case])
    refusal(path, DamagedCheckpoint)


def test_signed_but_incomplete_record(tmp_path: Path):
    path = tmp_path / "last.safetensors"
    for record in [
        {},
        {"format": "dbsn"},
        {"format": "dbsn", "format_version": "1", "kind": "stage1", "values": {}, "versions": {}},
    ]:
        signed = {**record, "sha256": checksum({}, record)}
        path.write_bytes(safetensors.torch.save({}, metadata={"dbsn": canonical(signed)}))
        refusal(path, DamagedCheckpoint)


# Files that are something else


class CreatesAFile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mknod, (str(self.path),)


@pytest.mark.parametrize("name", ["last.safetensors", "last.pth", "last.pt"])
@pytest.mark.parametrize("form", ["protocol 0", "protocol 2", "protocol 4", "torch.save", "zip"])
def test_pickles_are_refused_and_never_executed(tmp_path: Path, name: str, form: str):
    path, trap = tmp_path / name, tmp_path / "executed"
    payload = {"state_dict": CreatesAFile(trap), "padding": list(range(100))}
    if form == "torch.save":
        torch.save(payload, path)
    elif form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.pkl", pickle.dumps(payload))
    else:
        path.write_bytes(pickle.dumps(payload, protocol=int(form[-1])))
    message = refusal(path)
    assert not trap.exists()
    if (form, name) != ("protocol 0", "last.safetensors"):  # plain text without a mark
        assert "unpickling can execute code" in message
    if form.startswith("protocol"):
        pickle.loads(path.read_bytes())
        assert trap.exists()  # the trap works


def test_a_checkpoint_of_ours_may_have_any_suffix(saved: Path, tmp_path: Path):
    assert load_checkpoint(saved.rename(tmp_path / "last.pth")).values == VALUES


def test_missing_file_and_folders(saved: Path, tmp_path: Path):
    assert "no checkpoint" in refusal(tmp_path / "absent.safetensors")
    assert "no checkpoint" in refusal(saved / "below-a-file")
    assert f"e.g. {saved}" in refusal(tmp_path)
    saved.rename(tmp_path / "best.safetensors")
    (tmp_path / "state-00000001.safetensors").touch()
    assert "best.safetensors" in refusal(tmp_path)


def test_not_a_regular_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert "regular file" in refusal(tmp_path / "pipe")


def test_unreadable(saved: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(error: int):
        def open_file(self, *arguments):
            raise OSError(error, os.strerror(error), str(self))

        return open_file

    monkeypatch.setattr(Path, "open", failing(errno.EACCES))
    assert "permissions" in refusal(saved)
    monkeypatch.setattr(Path, "open", failing(errno.EIO))
    refusal(saved, RunError)


def test_safetensors_of_others(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    for metadata in [None, {"format": "pt"}]:
        safetensors.torch.save_file(tensors(), path, metadata=metadata)
        assert "not one of this project" in refusal(path, DamagedCheckpoint)


def test_newer_format(saved: Path):
    rewritten(saved, format_version=2)
    message = refusal(saved)
    assert "format 2" in message and "update the code" in message
    rewritten(saved, format_version=1, format="other")
    assert "not written by this project" in refusal(saved, DamagedCheckpoint)


def test_wrong_kind(saved: Path):
    message = refusal(saved, kind="stage2")
    assert "a stage-1 model (for train_distill.py and test.py)" in message and "a stage-2 model" in message
    rewritten(saved, kind="other")
    assert "'other'" in refusal(saved, kind=("stage1", "stage2"))


# Failing disks


def nothing_but(path: Path, data: bytes) -> None:
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == data


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_keeps_the_old_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int):
    def fail(*arguments, **named):
        raise OSError(error, os.strerror(error))

    before = saved.read_bytes()
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(RunError) as caught:
        save_checkpoint(saved, "stage1", {"x": torch.zeros(9)}, {})
    monkeypatch.undo()
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)
    nothing_but(saved, before)


def test_a_disk_that_is_really_full(tmp_path: Path):
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
        if sys.platform == "linux"
        else None
    )
    if mounted is None or mounted.returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        path = tmp_path / "last.safetensors"
        save_checkpoint(path, "stage1", tensors(), VALUES)
        before = path.read_bytes()
        with pytest.raises(RunError, match="No space left"):
            save_checkpoint(path, "stage1", {"x": torch.zeros(50_000)}, {})
        nothing_but(path, before)
        load_checkpoint(path)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError):
        save_checkpoint(tmp_path / "last.safetensors", "stage1", {}, {})


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    with pytest.raises(RunError, match="no regular file"):
        atomic_write_text("/dev/null", "x")
    assert not Path("/dev/null").is_file()
    (tmp_path / "there.txt").write_text("a")
    (tmp_path / "link").symlink_to("there.txt")
    atomic_write_text(tmp_path / "link", "b")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there.txt").read_text() == "b"
