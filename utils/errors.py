"""Errors a user can act on, stopping on a signal, and how a script ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

EXIT_FAILURE = 1  # the request was right, the work failed: disk full, non-finite loss, a damaged file met on the way
EXIT_USAGE = 2  # the request was wrong: a missing folder, an option out of range
EXIT_RESUME = 75  # stopped by a signal after saving; the same command continues (EX_TEMPFAIL)


class UsageError(Exception):
    """Wrong use. The message is one line that names the file, flag or value and the remedy."""

    exit_code = EXIT_USAGE


class RunError(Exception):
    """A failure that is no bug. The message is one line that names what failed and the remedy."""

    exit_code = EXIT_FAILURE


class StopRequest:
    """Turns the first SIGTERM or SIGINT into a request.

        with StopRequest() as stop:
            .. if stop.requested: save and end with EXIT_RESUME

    A second signal ends the process at once. While there is nothing to save the first one does so too, with
    EXIT_RESUME. Outside the main thread, where Python allows no handlers, nothing is installed.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested, self.nothing_to_save = False, False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            # None: installed by C code, which Python cannot put back
            if os.getpid() == self._process and handler is not None:
                signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        forked = os.getpid() != self._process
        if forked and number == signal.SIGINT:
            return  # Ctrl-C reaches forked children too; what becomes of them is this process's affair
        if forked or self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested = True
        what = "finishing the step and saving; signal again to end at once"
        if self.nothing_to_save:
            what = "nothing new to save; the same command continues"
        with suppress(OSError):  # not print(), which fails when the signal falls into another print
            os.write(2, f"{signal.Signals(number).name}: {what}\n".encode())
        if self.nothing_to_save:
            raise SystemExit(EXIT_RESUME)


def run_script(main: Callable[[], int | None]) -> None:
    """Ends the process with main's exit code.

    A UsageError or RunError becomes one line on stderr. Bugs keep their traceback.
    """
    try:
        code = main() or 0
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.exit(code)
