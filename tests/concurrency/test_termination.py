from __future__ import annotations

import signal

import pytest

from threadserve.concurrency.termination import Termination


def test_sigterm_ends_the_wait() -> None:
    with Termination() as termination:
        signal.raise_signal(signal.SIGTERM)

        termination.wait()


def test_ctrl_c_ends_the_block_quietly() -> None:
    reached = False

    with Termination() as termination:
        signal.raise_signal(signal.SIGINT)
        termination.wait()
        reached = True

    assert not reached


def test_other_exceptions_go_on() -> None:
    with pytest.raises(ValueError, match="mine"), Termination():
        raise ValueError("mine")


def test_after_the_block_sigterm_means_what_it_meant_before() -> None:
    before = signal.getsignal(signal.SIGTERM)

    with Termination():
        assert signal.getsignal(signal.SIGTERM) != before

    assert signal.getsignal(signal.SIGTERM) == before
