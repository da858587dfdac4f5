"""Checkpoints: tensors and plain values in one safetensors file.

Nothing is ever unpickled, so loading a file cannot execute anything. All that is not a tensor is one JSON text in the
file's metadata:

    dbsn: {"format": "dbsn", "format_version": 1, "kind": .., "sha256": .., "values": {..}, "versions": {..}}

The text is canonical (sorted keys, no spaces) and the only metadata entry, so the same contents make the same bytes.
The checksum covers the name, dtype, shape and bytes of every tensor, in order of name, and the JSON without the
checksum itself. That rule is the same in every format version: a damaged file is told from a newer one.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from utils.errors import RunError, UsageError
from utils.files import atomic_write_bytes

PROJECT_VERSION = "1.0.0"
FORMAT = "dbsn"  # also the metadata key
FORMAT_VERSION = 1
MAX_HEADER = 100_000_000  # bytes, the limit of safetensors itself
PICKLE_SUFFIXES = (".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".tar", ".zip")

# What a kind is and who uses it, for the message to somebody who gave the wrong file.
KINDS = {
    "stage1": "a stage-1 model (for train_distill.py and test.py)",
    "stage2": "a stage-2 model (for test.py)",
    "training-state": (
        "a training state (for the script that wrote it, which finds it when the same command is run again)"
    ),
}


class DamagedCheckpoint(UsageError):
    """The file holds no checkpoint that can be trusted: empty, truncated, altered, or something else altogether."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path} is no usable checkpoint: {reason}; restore it from a copy or give another file")
        self.reason = reason


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    kind: str  # "stage1", "stage2", "training-state", ..
    tensors: dict[str, Tensor]  # in order of name
    values: dict[str, Any]  # what the caller stored; its tuples have become lists
    versions: dict[str, str]  # of the software that wrote the file: project, torch, python
    path: Path


def save_checkpoint(path: str | Path, kind: str, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Writes a checkpoint atomically: at every moment the path holds the old file or the new one, whole.

    tensors: of any device, dtype and memory format; stored as contiguous copies, so tensors that share storage are
    stored once per name.
    values: None, bool, int, finite float, str, list, tuple and dict with str keys, nested at will; anything else is a
    TypeError or ValueError. Raises RunError where the file cannot be written.
    """
    stored = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    versions = {"project": PROJECT_VERSION, "torch": str(torch.__version__), "python": platform.python_version()}
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "versions": versions,
        "values": plain(values),
    }
    record["sha256"] = checksum(stored, record)
    atomic_write_bytes(Path(path), safetensors.torch.save(stored, metadata={FORMAT: canonical(record)}))


def load_checkpoint(
    path: str | Path, kind: str | tuple[str, ...] | None = None, device: str | torch.device = "cpu"
) -> Checkpoint:
    """Reads and verifies a checkpoint; its tensors are on `device`.

    kind: the kind, or kinds, that will do; None takes any.
    Raises DamagedCheckpoint (a UsageError) for a file that is not whole or not ours, UsageError for a wrong path, a
    pickled file, another kind or a newer format, RunError where the disk cannot be read.
    """
    path = Path(path)
    data, text = read_safetensors(path)
    try:
        record = json.loads(text)
        tensors = safetensors.torch.load(data)
        # Comparing the text itself leaves no altered byte unseen, not even one that parses to the same value.
        intact = canonical(record) == text and record.pop("sha256") == checksum(tensors, record)
        ours, newer = record["format"] == FORMAT, record["format_version"] > FORMAT_VERSION
        found, values, versions = record["kind"], record["values"], record["versions"]
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise DamagedCheckpoint(path, "its header or length is wrong") from error
    if not intact:
        raise DamagedCheckpoint(path, "its contents do not match their checksum")
    if not ours:
        raise DamagedCheckpoint(path, "it was not written by this project")
    if newer:
        raise UsageError(
            f"{path} has checkpoint format {record['format_version']}; this is version {PROJECT_VERSION}, "
            f"which reads up to format {FORMAT_VERSION}: "
            "update the code"
        )
    wanted = (kind,) if isinstance(kind, str) else kind
    if wanted is not None and found not in wanted:
        raise UsageError(f"{path} holds {describe(found)}; needed here: {' or '.join(describe(k) for k in wanted)}")
    tensors = {name: tensors[name].to(device) for name in sorted(tensors)}
    return Checkpoint(kind=found, tensors=tensors, values=values, versions=versions, path=path)


def read_safetensors(path: Path) -> tuple[bytes, str]:
    """The bytes of a safetensors file of this project and its JSON text.

    The header is judged before the rest is read. Raises as load_checkpoint.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"{path} is a folder: give the checkpoint file, e.g. {path / example_file(path)}")
        if not stat.S_ISREG(mode):
            raise UsageError(f"{path} is not a regular file: give a .safetensors checkpoint")
        with path.open("rb") as file:
            start = file.read(9)  # the header's length in 8 bytes, then the header, which opens with a brace
            length = int.from_bytes(start[:8], "little")
            size = path.stat().st_size
            if start[8:] != b"{" or length > min(size - 8, MAX_HEADER):
                raise not_safetensors(path, start, length > size)
            header = start[8:] + file.read(length - 1)
            try:
                text = json.loads(header)["__metadata__"][FORMAT]
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                reason = "it is a safetensors file, but not one of this project, or its header is damaged"
                raise DamagedCheckpoint(path, reason) from error
            return start[:8] + header + file.read(), text
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"no checkpoint {path}: check the path; training writes e.g. checkpoints/NAME/last.safetensors"
        ) from error
    except PermissionError as error:
        raise UsageError(f"{path} may not be read: check its permissions") from error
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error


def not_safetensors(path: Path, start: bytes, overlong: bool) -> UsageError:
    """The error for a file that does not open like a safetensors file.

    start: its first 9 bytes.
    overlong: they announce more than there is.
    """
    # A header of 640 bytes begins with the same two bytes as a pickle of protocol 2, hence the other conditions.
    pickled = (
        start[:1] == b"\x80"
        and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
        and overlong
        and start[8:] not in (b"", b"{")
    )
    if start and (pickled or start.startswith(b"PK\x03\x04") or path.suffix.lower() in PICKLE_SUFFIXES):
        return UsageError(
            f"{path} is a pickled checkpoint, which is not loaded because unpickling can execute code: "
            "give a .safetensors file written by "
            "train_dbsn.py or train_distill.py"
        )
    return DamagedCheckpoint(path, "it is cut short or not a safetensors file" if start else "it is empty")


def example_file(folder: Path) -> str:
    """The name of a model in a folder, to be given as an example: last.safetensors, unless there are only others."""
    names = sorted(file.name for file in folder.glob("*.safetensors") if not file.name.startswith("state-"))
    return names[0] if names and "last.safetensors" not in names else "last.safetensors"


def describe(kind: str) -> str:
    return KINDS.get(kind, f"a checkpoint of kind {kind!r}")


def checksum(tensors: dict[str, Tensor], record: dict[str, Any]) -> str:
    """SHA-256, in hexadecimal, over contiguous CPU tensors in order of name and a record of plain values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(canonical([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    digest.update(canonical(record).encode())
    return digest.hexdigest()


def canonical(value: Any) -> str:
    """The one JSON text of a plain value, in ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain(value: Any, where: str = "values") -> Any:
    """A copy made of JSON types alone; tuples become lists.

    TypeError or ValueError names the entry that is something else, NaN or infinite. json.dumps by itself turns keys
    that are numbers into strings without a word.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, which JSON cannot hold")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(entry, f"{where}.{key}") for key, entry in value.items()}
    raise TypeError(
        f"{where} is a {type(value).__name__} ({value!r}); only None, bool, int, float, str, list, "
        "tuple and dict with str keys are stored"
    )
