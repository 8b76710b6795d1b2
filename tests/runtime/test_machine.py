"""What this machine has: asked of files, the environment and programs that the tests put in place."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from threadserve.runtime import machine
from threadserve.runtime.machine import cores, installed_gpus, memory, memory_limits, visible_gpus

if TYPE_CHECKING:
    from pathlib import Path


class TestCores:
    @pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="there is no affinity here")
    def test_are_those_that_this_process_may_run_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7})

        assert cores() == 3

    @pytest.mark.parametrize(("count", "found"), [(6, 6), (None, 1)])
    def test_are_those_of_the_machine_where_there_is_no_affinity(
        self, count: int | None, found: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: count)

        assert cores() == found


class TestMemory:
    def test_limits_are_those_of_the_control_groups_and_of_all_above_them(self, tmp_path: Path) -> None:
        for name, text in {
            "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/app/one\n0::/app/two\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/app/one/memory.limit_in_bytes": "3000\n",
            "sys/fs/cgroup/app/memory.max": "2000\n",
            "sys/fs/cgroup/app/two/memory.max": "max\n",
        }.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

        assert sorted(memory_limits(tmp_path)) == [2000, 3000, 9223372036854771712]

    def test_has_no_limits_without_control_groups(self, tmp_path: Path) -> None:
        assert memory_limits(tmp_path) == []

    def test_is_no_more_than_the_least_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "memory_limits", lambda: [123, 2**63])
        monkeypatch.setattr(os, "sysconf", lambda name: 4096, raising=False)

        assert memory() == 123

    def test_is_none_where_the_system_does_not_tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "sysconf", raising=False)

        assert memory() == 0


class TestVisibleGpus:
    @pytest.mark.parametrize(
        ("variable", "gpu_ids"),
        [
            ("0", ("0",)),
            ("2, 0 ,1", ("2", "0", "1")),
            ("GPU-8932f937,MIG-7b1c", ("GPU-8932f937", "MIG-7b1c")),
            ("", ()),
            ("  ", ()),
            ("-1", ()),
            ("3,-1,4", ("3",)),
            ("3,,4", ("3",)),
            ("1,1", ("1",)),
            (None, None),
        ],
    )
    def test_are_those_that_the_environment_names(
        self, variable: str | None, gpu_ids: tuple[str, ...] | None
    ) -> None:
        assert visible_gpus(variable) == gpu_ids


@pytest.mark.skipif(os.name != "posix", reason="the program that is played here is a shell script")
class TestInstalledGpus:
    def play(self, script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def test_are_those_that_nvidia_smi_lists(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.play("printf '0\\n1\\n'", tmp_path, monkeypatch)

        assert installed_gpus() == ("0", "1")

    def test_are_none_when_it_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.play("echo 'No devices were found'; exit 6", tmp_path, monkeypatch)

        assert installed_gpus() == ()

    def test_are_none_when_it_is_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))

        assert installed_gpus() == ()

    def test_are_none_when_it_does_not_answer_and_the_log_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.play("exec sleep 60", tmp_path, monkeypatch)
        monkeypatch.setattr(machine, "LOOK_S", 0.05)

        assert installed_gpus() == ()
        assert "nvidia-smi did not answer within 0.05 s" in caplog.text
