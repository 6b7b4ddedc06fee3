"""What test files share: the devices that the op tests run on, one thread, a full disk, a reader
that has gone.

`device` is a fixture that runs a test on each of DEVICES, or of the test file's own DEVICES.
"emulated" runs the CUDA kernels on the CPU (tests/cuda_on_cpu) as a GPU of sm_90 would, and
"emulated_sm86" as one without clusters and with less shared memory, "emulated_sm80_code" as the
first with code for sm_80, under three orders of their threads, whose results must agree bit for
bit; there the tensors are on the CPU.
"""

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec

import pytest
import torch

from pacecore import isolated
from tests.cuda_on_cpu import devices

DEVICES = ("cpu", "emulated", "cuda")
ARCHITECTURES = {"emulated": 90, "emulated_sm86": 86, "emulated_sm80_code": 80}


def require(variable: str, reason: str) -> None:
    """Skips, saying why, or fails where the environment promises what is missing."""
    if os.environ.get(variable) == "1":
        pytest.fail(f"{variable}=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from threads, and lose much to each other where cores are few."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def videos_counted_here() -> Iterator[None]:
    """The few videos of a test are counted in its own process, not in others, whose start would
    take as long as all else of many a test. Verbs that run as processes have them.
    """
    if not find_spec("av"):  # nothing can be counted
        yield
        return
    from pacecore import datasets

    def jobs_here(function: Callable, jobs: Sequence, *_: object) -> Iterator[tuple[int, object]]:
        return isolated.run_jobs(function, jobs, workers=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "run_jobs", jobs_here)
        yield


@pytest.fixture
def largest_file() -> Callable[[int], AbstractContextManager[None]]:
    """`with largest_file(size):` more bytes than `size` fail within, in any file, as on a full
    disk. pytest's own report may be a file too: what it writes after the test must not fail.
    """

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def nobody_reads() -> Callable[[], AbstractContextManager[None]]:
    """`with nobody_reads():` the reader of stdout and stderr has gone within, as of `pacecore train
    2>&1 | head -1`, or a log's tee that was killed.
    """

    @contextmanager
    def gone() -> Iterator[None]:
        read, write = os.pipe()
        os.close(read)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("stdout", "stderr"):
                stream = os.fdopen(os.dup(write), "w")
                patch.setattr(stream, "close", lambda: None)  # it would fail anew
                patch.setattr(sys, name, stream)
            os.close(write)
            yield

    return gone


def pytest_configure() -> None:
    """Tests send Ctrl-C to what they start. A shell has what it starts in the background, and all
    that this starts, ignore it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compiles the CUDA kernels comes last: CI has done so beside the tests by then."""
    items.sort(key=lambda item: item.path.name.startswith("test_cuda"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = metafunc.definition.iter_markers("parametrize")
    if "device" in metafunc.fixturenames and not any("device" in mark.args[0] for mark in marks):
        names = getattr(metafunc.module, "DEVICES", DEVICES)
        cuda = {"cuda": [pytest.mark.cuda]}
        values = [pytest.param(name, marks=cuda.get(name, [])) for name in names]
        metafunc.parametrize("device", values, indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where an op test puts its tensors; while it runs, the ops reach the kernels to be tested."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            require("PACECORE_REQUIRE_CUDA", "no CUDA device is visible to torch")
        yield torch.device("cuda")
    elif request.param in ARCHITECTURES:
        reason = devices.emulation_missing()
        if reason:
            require("PACECORE_REQUIRE_EMULATION", reason)
        with devices.emulation(ARCHITECTURES[request.param]):
            yield torch.device("cpu")
    elif request.param == "cpu":
        yield torch.device("cpu")
    else:  # a misspelt name must not run the CPU's kernels in place of those that it means
        pytest.fail(f"no such device: {request.param}")
