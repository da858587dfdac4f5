"""A run stops on a signal."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from tests.helpers import script
from utils.errors import EXIT_RESUME, StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_a_request(number: int, capfd: pytest.CaptureFixture):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == f"{number.name}: finishing the step and saving; signal again to end at once\n"


def test_a_signal_ends_what_has_nothing_to_save(capfd: pytest.CaptureFixture):
    with StopRequest() as stop, pytest.raises(SystemExit) as end:
        stop.nothing_to_save = True
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == EXIT_RESUME
    assert capfd.readouterr().err == "SIGTERM: nothing new to save; the same command continues\n"


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
