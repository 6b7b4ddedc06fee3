"""Jobs whose process dies or hangs are named, and the others get done."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partialmethod
from pathlib import Path

import pytest

from pacecore.check import data_check
from pacecore.errors import PacecoreError
from pacecore.index import VideoIndex
from pacecore.isolated import JobFailure, run_jobs
from pacecore.store import pack
from tests.isolated_jobs import job, process
from tests.video_files import write_video


def test_jobs_that_die_or_hang_cost_no_other():
    jobs = [1, "die", 2, "hang", 3, "leave", 4]
    results = dict(run_jobs(job, jobs, workers=2, timeout_seconds=2))
    assert sorted(results) == list(range(7))
    assert [results[n] for n in (0, 2, 4, 6)] == [2, 4, 6, 8]
    assert results[1] == JobFailure("the process reading it ended by signal 11")
    assert results[3] == JobFailure("took longer than 2 s")
    assert results[5] == JobFailure("the process reading it ended with code 7")


def test_a_job_may_have_a_limit_of_its_own():
    limits = {"hang": 1.0, 2: 600.0}
    results = dict(run_jobs(job, ["hang", 2], workers=2, timeout_seconds=limits.get))
    assert results == {0: JobFailure("took longer than 1 s"), 1: 4}


def test_a_single_job_is_ended_too_when_its_own_time_is_over():
    failed, before = JobFailure("took longer than 1 s"), time.monotonic()
    assert list(run_jobs(job, ["hang"], timeout_seconds=1)) == [(0, failed)]
    assert time.monotonic() - before < 45  # imports included, not the most that they may take


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_is_raised_here(workers):
    with pytest.raises(PacecoreError, match=r"a\.avi: is bad"):
        list(run_jobs(job, ["raise", "raise"], workers=workers))


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError])
def test_what_a_closed_link_raises_may_be_the_jobs_own(error, monkeypatch):
    """The process that raised it lives, and would be waited for without an end."""
    limited = partialmethod(subprocess.Popen.wait, timeout=60)
    monkeypatch.setattr(subprocess.Popen, "wait", limited)
    with pytest.raises(error):
        list(run_jobs(exec, [f"raise {error.__name__}"] * 2, workers=2))


def test_a_process_for_each_core_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    for workers in (0, -1):
        assert len({result for _, result in run_jobs(process, range(6), workers)}) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert len({result for _, result in run_jobs(process, range(3))}) == 1


@pytest.mark.parametrize("workers", [-2, 1.5, "2", None])
def test_workers_that_are_no_number_of_processes_are_refused_before_any_work(workers, tmp_path):
    words = re.escape(f"workers must be a whole number of at least -1, got {workers!r}")
    nothing = VideoIndex("", "", ())
    for begins in (
        lambda: list(run_jobs(job, ["die"], workers)),
        lambda: data_check(nothing, workers=workers),
        lambda: pack(nothing, tmp_path / "store", (8, 8), workers),
    ):
        with pytest.raises(PacecoreError, match=words):
            begins()
    assert list(tmp_path.iterdir()) == []


def test_few_short_jobs_share_a_process():
    assert len({result for _, result in run_jobs(process, range(3), 2, jobs_each=2)}) == 2
    assert len({result for _, result in run_jobs(process, range(2), 2, jobs_each=2)}) == 1


def test_a_script_is_not_run_again_by_its_processes(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in "ab":
        write_video(tmp_path / "videos" / f"{name}.avi", frames=7)
    script = tmp_path / "script.py"
    script.write_text(
        "from pacecore.datasets import find_videos, probe_all\n"
        "print([each.num_frames for each in probe_all(find_videos('videos'))[0].entries])\n"
    )
    ran = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[7, 7]\n", "")


def test_no_process_outlives_its_jobs(monkeypatch):
    """Nor those whose results nobody asked for to the end."""
    started, start = [], subprocess.Popen

    def noting(*arguments, **options):
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noting)
    assert sorted(run_jobs(abs, [-1, -2, -3], workers=2)) == [(0, 1), (1, 2), (2, 3)]
    jobs = run_jobs(abs, [-1, -2, -3], workers=2)
    next(jobs)
    assert [each.returncode is None for each in started] == [False, False, True, True]
    jobs.close()
    assert None not in [each.returncode for each in started]


def test_processes_end_with_the_one_that_started_them():
    """Also those at a job that never ends."""
    script = (
        "from pacecore.isolated import run_jobs; from tests.isolated_jobs import process_that_hangs"
        "\nfor _, number in run_jobs(process_that_hangs, range(9), 2): print(number, flush=True)"
    )
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    numbers = {int(starter.stdout.readline()) for _ in range(2)}
    starter.kill()
    starter.wait()  # not for the end of its output, which they hold too
    starter.stdout.close()
    end = time.monotonic() + 60
    while left := [number for number in numbers if running(number)]:
        if time.monotonic() > end:
            for number in left:
                os.kill(number, signal.SIGKILL)
            pytest.fail(f"{left} of {numbers} went on")
        time.sleep(0.05)


def running(number):
    with suppress(OSError):  # one that nobody waits for stays in the list, as Z
        return Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


def test_where_no_process_can_be_started_one_line_says_so(monkeypatch):
    def refused(*_, **__):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refused)
    with pytest.raises(PacecoreError, match="to read videos: Resource temporarily unavail"):
        list(run_jobs(job, [1, 2]))


def test_nothing_to_do():
    assert list(run_jobs(job, [])) == []
