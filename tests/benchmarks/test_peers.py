"""Every rival runs what it is given, and whoever is missing says so."""

from __future__ import annotations

import contextlib
import threading

import pytest

from benchmarks import mixes, peers
from benchmarks.measure import EFFORTS, Run

HERE = [peer for peer in [*peers.ALL, peers.OURS_ONE_AT_A_TIME] if not peer.missing and not peer.is_slow]


@pytest.mark.parametrize("peer", HERE, ids=lambda peer: peer.name)
@pytest.mark.parametrize("workers", [1, 3])
def test_callers_get_the_answers_to_what_they_submitted(peer: peers.Peer, workers: int) -> None:
    with peer.open(lambda value: value * 2, workers) as connect:
        first, second = connect(), connect()
        answers = [first.submit(value) for value in range(20)]

        assert second.call(21) == 42
        assert sorted(map(first.result, answers)) == list(range(0, 40, 2))


def test_who_is_not_installed_is_left_out_and_that_is_said() -> None:
    run = Run(EFFORTS["smoke"])
    absent = peers.Peer("Absent", peers.DIRECT.open, package="no_such_package")

    with contextlib.ExitStack() as stack:
        opened = peers.open_peers(stack, [peers.DIRECT, absent], abs, 1, run)

    assert list(opened) == ["direct call"]
    assert run.notes == ["Absent: no no_such_package installed here, so it is left out"]


def test_who_is_not_wanted_is_left_out_in_silence() -> None:
    run = Run(EFFORTS["smoke"], without=("direct call",))

    assert peers.present([peers.DIRECT, peers.EXECUTOR], run) == [peers.EXECUTOR]
    assert run.notes == []


def test_an_app_of_ones_own_gets_its_arguments_or_the_response_before(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend("examples")
    peer = peers.own_app("chain:app", "__call__", [5])

    with peer.open(abs, 1) as connect:
        client = connect()
        once = client.submit(None)
        again = client.submit(once)

        assert client.result(once) == 21
        assert client.result(again) == (21 + 2) * 3


@pytest.mark.parametrize("peer", [peers.OURS, peers.HANDED_OFF, peers.EXECUTOR], ids=lambda peer: peer.name)
@pytest.mark.parametrize("mix", mixes.MIXES.values(), ids=lambda mix: mix.name)
def test_every_kind_of_job_is_noted_when_it_is_done(peer: peers.Peer, mix: mixes.Mix) -> None:
    ledger = mixes.Ledger()
    jobs = [mix.job(number)._replace(seconds=1e-6) for number in range(8)]

    with mixes.open_mix(peer, mix, 2, ledger) as connect:
        client = connect()
        ledger.expect(len(jobs))
        answers = [client.submit(job) for job in jobs]
        ends = ledger.wait()

    assert len(answers) == len(ends) == len(jobs)
    assert min(ends) > 0
    assert len(ledger.workers) == len(jobs)


def test_the_least_share_is_that_of_the_idlest_worker() -> None:
    ledger = mixes.Ledger()
    for worker in (1, 1, 1, 2):
        ledger.note(0, worker)

    assert ledger.least_share(2) == 50.0
    assert ledger.least_share(3) == 0.0


def test_a_neighbour_is_busy_until_the_block_ends() -> None:
    before = set(threading.enumerate())
    done = threading.Semaphore(0)

    def work(_: object) -> None:
        done.release()

    with peers.EXECUTOR.open(work, 1) as connect, mixes.busy(connect(), mixes.MIXES["sleep"]):
        for _ in range(5):
            done.acquire()

    assert set(threading.enumerate()) == before


def test_what_goes_wrong_with_the_neighbour_is_raised() -> None:
    failed = threading.Event()

    def fail(_: object) -> None:
        failed.set()
        raise LookupError("no such job")

    with pytest.raises(LookupError, match="no such job"):
        with peers.DIRECT.open(fail, 1) as connect, mixes.busy(connect(), mixes.MIXES["sleep"]):
            failed.wait(timeout=30)
