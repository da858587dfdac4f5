"""The folder of one training run.

    .lock                        held by the one process that trains here
    options.json                 the options the run was started with
    stats.jsonl                  one JSON object per logged step
    state-00001234.safetensors   all that training needs to go on after step 1234; the newest few are kept
    last.safetensors, ..         the model alone, for others to load

Every file but stats.jsonl is replaced whole, and stats.jsonl is cut back to the state that training resumes from:
killed at any moment and run again leaves the same bytes as never killed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from options.records import with_sigma_n
from utils.checkpoint import Checkpoint, DamagedCheckpoint, load_checkpoint, plain, save_checkpoint
from utils.errors import RunError, UsageError
from utils.files import atomic_write_bytes, atomic_write_text, finite

OUR_TEMPORARY = re.compile(r"\.(options\.json|stats\.jsonl|.+\.safetensors)\..+\.tmp")
STATE = re.compile(r"state-(\d{8,})\.safetensors")
# what flock says on network file systems without locks
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
MISSING = object()  # in place of an option's value


def warn_on_stderr(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


class RunFolder:
    """A run's folder, held by one process at a time.

    `with RunFolder(path) as run:` creates it, locks it and clears what a killed save left.

    keep: how many of the newest states stay on disk, 1 or more.
    warn: is given one line for each thing that is wrong but does not stop the run.

    Entering raises UsageError where the folder cannot be created or written, or where another process holds it.
    """

    def __init__(self, path: str | Path, keep: int = 2, warn: Callable[[str], None] = warn_on_stderr):
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least one state has to stay")
        self.path = Path(path)
        self.keep = keep
        self.warn = warn
        self._lock: int | None = None  # file descriptor

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise RunError(f"cannot create run folder {self.path}: {error.strerror}; free some space") from error
            raise UsageError(
                f"cannot use run folder {self.path}: {error.strerror} ({error.filename}); "
                "choose another --name or place"
            ) from error
        self._lock = lock
        # The lock belongs to the open file, which a forked child shares: one that outlives a killed parent
        # would keep the run locked.
        os.register_at_fork(after_in_child=self._close_lock)
        try:
            self._take_lock(lock)
            with failing_with(f"cannot clear unfinished files from {self.path}"):
                for file in self.path.glob(".*.tmp"):
                    if OUR_TEMPORARY.fullmatch(file.name):
                        file.unlink()
        except BaseException:
            self._close_lock()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._close_lock()

    def _take_lock(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(lock, 1000).decode(errors="replace").strip() or "another process"
            raise UsageError(
                f"run folder {self.path} is in use by {owner}; wait for it to end, or use another --name"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise RunError(f"cannot lock run folder {self.path}: {error.strerror}") from error
            self.warn(
                f"the file system of {self.path} has no locks ({error.strerror}): "
                "make sure that no second process trains there"
            )
            return
        with suppress(OSError):  # the text only serves the message above
            os.ftruncate(lock, 0)
            os.write(
                lock,
                (
                    f"process {os.getpid()} on {socket.gethostname()} (since {time.strftime('%Y-%m-%d %H:%M:%S')})\n"
                ).encode(),
            )

    def _close_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check_options(
        self,
        options: Mapping[str, Any],
        ignore: frozenset[str] = frozenset(),
        defaults: Mapping[str, Any] | None = None,
        digests: frozenset[str] = frozenset(),
    ) -> None:
        """Records a new run's options, or compares those of a run that goes on.

        A UsageError names each option that is not what it was.

        options: name, as in `noise_draw`, to plain value.
        ignore: options that may change from one start to the next, such as how often to log; they are recorded without
        a word.
        digests: names of those that are no option but the digest of what one names, such as images: a message does
        without their values.
        defaults: what an option that the record lacks, because an older version wrote it, counts as; without an entry
        here it counts as changed.
        """
        file = self.path / "options.json"
        new = plain(dict(options), "options")
        assumed = plain(dict(defaults or {}), "defaults")
        old = self.recorded_options()
        if old is not None:
            changes = []
            for name in sorted((set(new) | set(old)) - ignore):
                before, now = old.get(name, assumed.get(name, MISSING)), new.get(name, MISSING)
                if before != now and name in digests:
                    changes.append(f"{name.replace('_', ' ')} are others than before")
                elif before != now:
                    changes.append(f"--{name.replace('_', '-')} was {shown(before)}, now {shown(now)}")
            if changes:
                raise UsageError(
                    f"run {self.path} was begun otherwise: {'; '.join(changes)}; use another --name, "
                    "or delete the folder to start over"
                )
        if new != old:
            atomic_write_text(file, json.dumps(new, indent=2, sort_keys=True, allow_nan=False) + "\n")

    def recorded_options(self) -> dict[str, Any] | None:
        """The options that check_options has recorded, under today's names; None in a new run. It needs no lock."""
        file = self.path / "options.json"
        try:
            options = json.loads(file.read_bytes())
            if isinstance(options, dict):
                return with_sigma_n(options)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RunError(f"cannot read {file}: {error.strerror}") from error
        except (ValueError, RecursionError):
            pass
        raise UsageError(
            f"{file} is not a record of options: restore it, use another --name, or delete the folder to start over"
        )

    def save_state(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
        """Writes the state after `step` steps, then removes all but the newest `keep`.

        The step is also stored as values["step"]. The statistics of every step up to this one have to be appended
        before. Raises RunError where the disk is full or fails; older states stay.
        """
        stats = self.path / "stats.jsonl"
        file = self.path / f"state-{step:08d}.safetensors"
        with failing_with(f"cannot write {stats}"):
            if stats.exists():  # after a power failure no state may be newer than its statistics
                with stats.open("rb") as written:
                    os.fsync(written.fileno())
        save_checkpoint(file, "training-state", tensors, {**values, "step": step})
        with failing_with(f"cannot remove old states from {self.path}"):
            for old in self._states()[: -self.keep]:
                old.unlink(missing_ok=True)
        return file

    def load_state(self) -> Checkpoint | None:
        """The newest state that is whole, on the CPU; None in a run that has saved none yet and so starts at step 0.

        A damaged state is named in a warning and moved aside, to <name>.damaged. Raises RunError where no other is
        left.
        """
        for file in reversed(self._states()):
            try:
                return load_checkpoint(file, "training-state")
            except DamagedCheckpoint as error:
                aside = file.with_name(f"{file.name}.damaged")
                self.warn(f"training state {file} cannot be used: {error.reason}; moved aside to {aside.name}")
                with failing_with(f"cannot move {file} aside"):
                    file.replace(aside)
        damaged = sorted(file.name for file in self.path.glob("state-*.damaged"))
        if damaged:
            raise RunError(
                f"every saved state of {self.path} is damaged ({', '.join(damaged)}): restore one from a copy, "
                "or delete the folder to start over"
            )
        return None

    def _states(self) -> list[Path]:
        """Files of states, oldest step first."""
        steps = {file: match for file in self.path.iterdir() if (match := STATE.fullmatch(file.name))}
        return sorted(steps, key=lambda file: int(steps[file][1]))

    def save_weights(self, name: str, kind: str, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
        """Writes a model to <name>.safetensors; arguments and errors as save_checkpoint."""
        file = self.path / f"{name}.safetensors"
        save_checkpoint(file, kind, tensors, values)
        return file

    def append_stats(self, row: dict[str, Any]) -> None:
        """Appends one line to stats.jsonl, keys as given; NaN and infinity become null, as JSON has neither.

        row: plain values; row["step"] is the number of steps done. Times in it would make two runs differ.
        """
        if not isinstance(row.get("step"), int):
            raise ValueError(f"a row of statistics needs its step, an int: {row!r}")
        file = self.path / "stats.jsonl"
        with failing_with(f"cannot write {file}"), file.open("a", encoding="ascii") as stats:
            stats.write(json.dumps(plain(finite(row), "row"), allow_nan=False) + "\n")

    def truncate_stats(self, step: int) -> None:
        """Drops the rows of steps after `step` and a last line cut short by a kill, atomically.

        step: that of the state that training resumes from; 0 where there is none.
        """
        file = self.path / "stats.jsonl"
        with failing_with(f"cannot read {file}"):
            text = file.read_bytes() if file.exists() else b""
        lines = text.split(b"\n")[:-1]
        steps = [step_of(line) for line in lines]
        if None in steps:
            self.warn(f"{file} has {steps.count(None)} unreadable lines, which are dropped")
        kept = b"".join(line + b"\n" for line, found in zip(lines, steps) if found is not None and found <= step)
        if kept != text:
            atomic_write_bytes(file, kept)


class FollowedRun(RunFolder):
    """The folder of a run that another process writes.

    It is only read here. Every write is left to that process.
    """

    def __enter__(self) -> FollowedRun:
        return self

    def check_options(self, *_: Any, **__: Any) -> None:
        pass

    save_state = save_weights = append_stats = truncate_stats = check_options


@contextmanager
def failing_with(what: str) -> Iterator[None]:
    """Turns an OSError into a RunError that says what failed."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{what}: {error.strerror or error}; check the disk's space and permissions") from error


def shown(value: Any) -> str:
    """An option's value as a message shows it."""
    if value is MISSING:
        return "absent"
    return value if isinstance(value, str) and value else json.dumps(value)


def step_of(line: bytes) -> int | None:
    """The step of a row of statistics; None if the line is no such row."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None
