"""From each benchmark's record to rows of one form: a way, its figure, ours beside it, a limit.

`times` is by how much ours is faster than that way, in the same run; 1 is ours. `share` is the part
of the limit that the way reaches; `limit` says in words what the limit is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

__all__ = ["ADAPTERS", "Row", "rows_of", "short"]


@dataclass(frozen=True)
class Row:
    """One line of the page."""

    case: str
    way: str
    value: float
    unit: str
    times: float | None = None
    limit: str = ""
    share: float | None = None
    note: str = ""


def short(number: float) -> str:
    """Three figures, without an exponent."""
    digits = 2 if abs(number) < 10 else 1 if abs(number) < 100 else 0
    return f"{number:,.4f}" if abs(number) < 0.1 else f"{number:,.{digits}f}"


def _limit_of(limits: list[dict], threads: int | None, kind: str) -> float | None:
    """A figure of the limits, for so many threads or, with None, for all of them."""
    chosen = [case for case in limits if threads is None or case["threads"] == threads]
    return chosen[-1].get(kind) if chosen else None


def _of_gpu(limits: list[dict]) -> bool:
    return any("bus_bytes_per_second" in case for case in limits)


def pace_clip(cases: list[dict], limits: list[dict]) -> Iterator[Row]:
    copies = {case["threads"]: case for case in cases if case["case"] == "copy"}
    ours: dict[tuple, float] = {}
    on_gpu = not any("processor_bytes_a_second" in copy for copy in copies.values())
    for case in cases:
        if "contender" not in case:  # the copy, and ratios of layouts
            continue
        one_thread = case["threads"] == 1
        # Most others hardly use a second one: whoever has more cores runs a process on each.
        if not one_thread and case["contender"] != "pace_clip":
            continue
        # Of one thread the processor's time: other programs hardly change it.
        of_core = one_thread and "processor_ms_a_clip" in case
        took = case["processor_ms_a_clip"] if of_core else case["ms_a_clip"]
        copied = copies[case["threads"]]
        copy = copied.get("processor_bytes_a_second") if of_core else None
        copy = copy or copied["bytes_a_second"]
        key = (case["case"], case["threads"])
        ours.setdefault(key, took)
        yield Row(
            case["case"] if on_gpu else f"{case['case']}, {_threads(case['threads'])}",
            case["contender"],
            took,
            "ms of a core a clip" if of_core else "ms a clip",
            took / ours[key],
            f"copy of {short(copy / 1e9)} GB/s",
            case["bytes_a_second"] * case["ms_a_clip"] / took / copy,
        )


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def info_nce(cases: list[dict], limits: list[dict]) -> Iterator[Row]:
    ours: dict[str, float] = {}
    for case in cases:
        name = f"{case['rows']:,} x {case['features']}, {case['type']}, "
        # Earlier records have norm 1 alone.
        name += f"norm {norm:g}, " if (norm := case.get("norm", 1)) != 1 else ""
        name += "forward and backward"
        if "seconds" not in case:
            continue
        took = 1000 * case["seconds"]["p50"]
        if case["name"] == "pacecore":
            ours[name] = took
        if name not in ours:  # it failed, which the run says; no peer stands for it, nor below
            continue
        rate = case["tflops"] / case["share"]
        if case["type"] == "float32":  # measured twice: of what the run reached at any time
            rate = max(rate, (_limit_of(limits, None, "float32_flops") or 0) / 1e12)
        yield Row(
            name,
            case["name"],
            took,
            "ms",
            took / ours[name],
            f"matrix product at {short(rate)} TFLOP/s",
            case["tflops"] / rate,
            f"{case['peak_extra_bytes'] / 1e6:,.0f} MB extra{_as_graph(case)}",
        )


def _as_graph(case: dict) -> str:
    """The GPU's own time, where starting the kernels takes longer than running them."""
    if "graph_seconds" not in case:
        return ""
    return f"; {short(1000 * case['graph_seconds']['p50'])} ms as a CUDA graph"


# What torch does unasked is true fp32 on a CPU, TF32 on a GPU.
_PLAIN = {"plain": "torch unasked, true fp32", "plain in TF32": "torch unasked, TF32"}


def backbones(cases: list[dict], limits: list[dict]) -> Iterator[Row]:
    for case in cases:
        if "clips_per_second" not in case:
            continue
        peer = _PLAIN.get(case["way"])
        kind = "bfloat16_flops" if case["way"].startswith("bf16") else "float32_flops"
        rate = None if case["way"] == "plain in TF32" else _limit_of(limits, None, kind)
        name = f"{case['network']}, width {case['width']:g}, batch {case['batch']}"
        beside = [
            other
            for other in cases
            if other.get("network") == case["network"]
            and other["way"] not in _PLAIN
            and "times_plain" in other
        ]
        best = max(beside, key=lambda c: c["times_plain"], default=None)
        if peer and not best:
            continue
        yield Row(
            f"{name}, {case['frames']} x {case['crop']} x {case['crop']}, a training step",
            peer or f"ours, {case['way']}",
            case["clips_per_second"],
            "clips/s",
            best["times_plain"] / case["times_plain"] if peer else None,
            f"matrix product at {short(rate / 1e12)} TFLOP/s" if rate else "",
            1e12 * case["tflop_per_second"] / rate if rate else None,
            f"{case['peak_bytes'] / 1e6:,.0f} MB" + (f"; ours is {best['way']}" if peer else ""),
        )


def data(cases: list[dict], limits: list[dict]) -> Iterator[Row]:
    """The authors' way, which reads extracted frames, beside our files and beside our store."""
    rates = {case["way"]: case["clips_per_core_second"] for case in cases}
    files, store, decoding = "files", "store", "files, decoding alone"
    # These clips never see a GPU, so its memory does not limit them.
    copy = None if _of_gpu(limits) else _limit_of(limits, 1, "copy_bytes_per_second")
    # 16 frames: the crop's part of the stored planes read, 3 x 112 x 112 numbers written.
    store_bytes = 16 * (1.5 * 112 * 112 + 4 * 3 * 112 * 112)
    name = f"clips from {cases[0].get('videos', 'video files')}"
    for ours, kind, words in (
        (files, "files", f"{name}, one core"),
        (store, "store", f"{name}, packed or extracted, one core"),
    ):
        for way in sorted(rates, key=lambda way: way != ours):  # ours first
            rate = rates[way]
            peer = not way.startswith(("files", "store"))
            if not peer and not way.startswith(kind):
                continue
            limit, share = "", None
            if way == files:
                limit = f"decoding alone, {short(rates[decoding])} clips/s"
                share = rate / rates[decoding]
            elif way == store and copy:
                limit, share = f"copy of {short(copy / 1e9)} GB/s", rate * store_bytes / copy
            times = rates[ours] / rate if peer else None
            yield Row(words, way, rate, "clips a core second", times, limit, share)


def train_step(cases: list[dict], limits: list[dict]) -> Iterator[Row]:
    on_gpu = _of_gpu(limits)
    for case in cases:
        if case["case"] == "overhead":
            bare, took = (
                1000 * median(each[name] for each in case["rounds"])
                for name in ("bare_step_seconds", "step_seconds")
            )
            name = f"a step of training, preset {case['preset']}, {case['batch_clips']} clips"
            waiting = 1000 * median(each["waiting_seconds"] for each in case["rounds"])
            limit, share = f"bare loop, {short(bare)} ms", 1 / (1 + case["overhead_share"])
            note = f"of it waiting for data {short(waiting)} ms, which the share leaves out"
            if on_gpu:
                note = f"waiting for data {short(waiting)} ms, partly beside the GPU's work"
            yield Row(name, f"pacecore, {case['data']}", took, "ms", None, limit, share, note)
        elif case["case"] == "start":
            seconds = median(each["seconds_to_its_end"] for each in case["runs"])
            yield Row("from the command to the end of the first step", "pacecore", seconds, "s")
        elif case["case"] == "memory":
            first, last = case["steps"]
            held = case["process_megabytes"][1] + case["workers_megabytes"][1]
            note = f"grown by {short(case['grown_megabytes'])} MB since step {first:,}"
            yield Row(f"memory at step {last:,}", "pacecore", held, "MB", note=note)


def evaluate(cases: list[dict], limits: list[dict]) -> Iterator[Row]:
    for case in cases:
        rates = case["clips_per_second"]
        name = f"10-clip test, {case['backbone']}, preset {case['preset']}"
        name += f", from {case['from']}" if "from" in case else ""
        limit = f"network alone, {short(rates['network_alone'])} clips/s"
        share = case["share_of_network_rate"]
        yield Row(name, "pacecore", rates["test"], "clips/s", None, limit, share)


def retrieve(cases: list[dict], limits: list[dict]) -> Iterator[Row]:
    flops = _limit_of(limits, None, "float32_flops")
    on_gpu = _of_gpu(limits)
    for case in cases:
        name = f"{case['queries']:,} queries on {case['gallery']:,} x {case['dimensions']:,}"
        work = 2 * case["queries"] * case["gallery"] * case["dimensions"]
        ways = {n: found for n, found in case.items() if isinstance(found, dict)}
        first = None
        for way, found in ways.items():
            took = found["seconds"]["p50"]
            first = first or took
            limited = flops and (way == "pacecore" or not on_gpu)  # the others run on the CPU
            yield Row(
                name,
                way,
                1000 * took,
                "ms",
                took / first,
                f"matrix product at {short(flops / 1e12)} TFLOP/s" if limited else "",
                work / took / flops if limited else None,
                f"{found['peak_extra_bytes'] / 1e6:,.0f} MB extra"
                if "peak_extra_bytes" in found
                else "",
            )


def pretrain(cases: list[dict], limits: list[dict]) -> Iterator[Row]:
    best = max(
        (
            case["clips_per_second"]
            for case in cases
            if case["way"].startswith("pacecore") and "failed" not in case
        ),
        default=None,
    )
    for case in cases:
        peer = not case["way"].startswith("pacecore")
        if "failed" in case or (peer and not best):
            continue
        clip = " x ".join(map(str, case["clip"]))
        alone = case["network_alone"]
        yield Row(
            f"r21d, width 1, {clip}, batch {case['batch']}, {case['workers']} workers, end to end",
            case["way"],
            case["clips_per_second"],
            "clips/s",
            best / case["clips_per_second"] if peer else None,
            f"network alone, {short(alone)} clips/s" if alone else "",
            case["clips_per_second"] / alone if alone else None,
            f"waiting for data {100 * case['waiting_share']:.0f} %"
            if "waiting_share" in case
            else "",
        )


ADAPTERS: dict[str, Callable[[list[dict], list[dict]], Iterator[Row]]] = {
    each.__name__: each
    for each in (pace_clip, info_nce, backbones, data, train_step, evaluate, retrieve, pretrain)
}


def rows_of(name: str, cases: list[dict], limits: list[dict]) -> list[Row]:
    """The rows of a benchmark's cases; `limits` are the cases of benchmarks.limits, or empty.

    Raises KeyError where the record holds something else than the benchmark writes.
    """
    return list(ADAPTERS[name](cases, limits))
