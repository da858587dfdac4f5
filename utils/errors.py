"""Errors a user can act on, and how a script ends with them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

EXIT_FAILURE = 1  # the request was right, the work failed: disk full, non-finite loss, a damaged file met on the way
EXIT_USAGE = 2  # the request was wrong: a missing folder, an option out of range
EXIT_RESUME = 75  # stopped by a signal after saving; the same command continues (EX_TEMPFAIL)


class UsageError(Exception):
    """Wrong use. The message is one line that names the file, flag or value and the remedy."""

    exit_code = EXIT_USAGE


class RunError(Exception):
    """A failure that is no bug. The message is one line that names what failed and the remedy."""

    exit_code = EXIT_FAILURE


def run_script(main: Callable[[], int | None]) -> None:
    """Ends the process with main's exit code; a UsageError or RunError becomes one line on stderr. Bugs keep their traceback."""
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
