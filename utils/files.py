"""Writing files so that a kill or a full disk never leaves a half-written one."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.errors import RunError


def shown(path: str | Path) -> str:
    """A path as it stands in a message of one line.

    It is escaped where it has a newline or anything else that does not print.
    """
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, .<name>.<random>.tmp.

    What the block wrote there then replaces `path`, on disk before it is seen. An error in the block removes the
    temporary and leaves `path` as it was; an OSError becomes a RunError.
    """
    path = Path(os.path.realpath(path))  # a link stays, and what it points to is replaced
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if path.exists() and not path.is_file():
            raise RunError(f"cannot write {shown(path)}: it is no regular file; give the name of a new one")
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunError(
                f"cannot write {shown(path)}: {error.strerror or error}; check the disk's space and permissions"
            ) from error
        raise


def check_writable(folder: Path) -> None:
    """Raises RunError where no file can be written in a folder: before the work whose results go there."""
    file = folder / f".writable.{secrets.token_hex(4)}"
    atomic_write_bytes(file, b"")
    file.unlink()


def counted(things: Sized, noun: str = "picture") -> str:
    """How many there are, in words: 1 picture, 2 pictures."""
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def sync_folder(folder: Path) -> None:
    """Makes a rename in the folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Replaces the file whole; see atomic_path."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: str | Path, value: Any) -> None:
    """Writes a value as JSON, which has no NaN and no infinity: they become null."""
    atomic_write_text(path, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same value with None for every float in it that is NaN or infinite."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
