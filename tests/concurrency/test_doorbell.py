"""Waiting for the first client of a socket."""

from __future__ import annotations

import socket
import threading

from threadserve.concurrency.doorbell import Doorbell


def test_a_client_rings_and_stays_to_be_accepted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        doorbell = Doorbell(listener)
        with socket.create_connection(listener.getsockname()):
            assert doorbell.wait()
            accepted, _ = listener.accept()
            accepted.close()
        doorbell.stop()


def test_stop_ends_the_wait() -> None:
    rung: list[bool] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        doorbell = Doorbell(listener)
        waiting = threading.Thread(target=lambda: rung.append(doorbell.wait()))
        waiting.start()

        doorbell.stop()
        waiting.join(10)

    assert rung == [False]


def test_stop_may_come_first_and_be_repeated() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        doorbell = Doorbell(listener)
        doorbell.stop()
        doorbell.stop()

        assert not doorbell.wait()
