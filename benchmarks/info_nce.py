"""info_nce against the ways a user would otherwise have it, forward and backward.

    python -m benchmarks.info_nce [--device cpu] [--quick] [--out FILE] [--rows 60,1024]
        [--features 128,512,768] [--types float32,bfloat16] [--norms 1,22.6]

Contestants: pacecore's op; `eager`, the reference that the tests use (pacecore.reference), which
holds the (n, n) matrix; `compiled`, torch.compile of that; `loss alone` and its compilation, which
spare the figures for the log that these three give; and, where installed, lightly's NTXentLoss (Eq.
2, normalised, its own pairing of views). Each in the same process, in turn, so that a slow spell of
the machine falls on all, on the same z (n, D) with two rows a group, random ones of norm 1 or about
as given. At norm 22.6, D = 512, temperature 1, a softmax reaches below the smallest normal numbers,
which cost a CPU a hundred times the others wherever they are computed with. A contestant whose
matrices would not fit in half of the free memory is not run and the record says so.

What no way can go below, for n rows of D features, with the full matrix (a symmetric one halves the
first two lines):

    forward     s = z z^T                              2 n^2 D  floating-point operations
    backward    s again, or n^2 numbers kept           2 n^2 D
                d loss / d z = weights . z             2 n^2 D
    exponentials                                       n^2 forward, 2 n^2 backward
    memory      read z, write its gradient             2 n D numbers

"tflops" is the least of these, 4 n^2 D (s once over half the matrix in each pass, one product for
the gradient), over the time, so that it compares contestants and not how much they repeat; it is
what pacecore's op does for many rows. "share" is that over the rate that one square matrix product
of the type reaches on the same machine. pacecore's op holds beside z and its gradient n D numbers
of float32 that the gradient is summed in and, on CUDA, weights and sums as large as the cache; on a
CPU 3 n D of them, z laid out for its loops and two sums.
"""

import argparse
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from pacecore.ops import info_nce
from pacecore.reference.info_nce import info_nce as reference

from .common import peak_extra_bytes, peer, run_main, time_function, time_in_turn, write_record
from .options import comma_separated, parser_of, positive, positive_number

ROWS = (60, 512, 2048, 4096, 16384, 32768, 65536, 131072)
# Rows, features, type and norm of a quick run, which has a minute on a GPU.
QUICK_CPU = [
    (60, 512, "float32", 1.0),
    (512, 512, "float32", 1.0),
    (512, 512, "float32", 22.6),
]
QUICK_CUDA = [
    (60, 512, "float32", 1.0),
    (60, 512, "bfloat16", 1.0),
    (512, 512, "bfloat16", 1.0),
    (4096, 512, "float32", 1.0),
    (32768, 512, "bfloat16", 1.0),
    (65536, 768, "bfloat16", 1.0),
    (131072, 512, "bfloat16", 1.0),
]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# (n, n) matrices that a contestant holds at once, of 4 bytes; measured with the allocator.
MATRICES = {"pacecore": 0, "eager": 8, "compiled": 6, "lightly": 6}
MATRICES |= {"loss alone": 5, "loss alone, compiled": 5}


def loss_alone(z: Tensor, groups: Tensor) -> Tensor:
    """Eq. 2 and 3 in plain torch, as whoever wants no figures for the log would write them."""
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (groups[:, None] == groups) & others
    logits = (z @ z.T).masked_fill(~others, float("-inf"))
    count = positive.sum(1)
    mean_positive = logits.masked_fill(~positive, 0).sum(1) / count.clamp_min(1)
    return torch.where(count > 0, logits.logsumexp(1) - mean_positive, 0.0).mean()


def contestants(device: torch.device) -> dict[str, Callable]:
    """Functions of (z, groups) that give the loss."""
    functions = {
        "pacecore": lambda z, groups: info_nce(z, groups).loss,
        "eager": lambda z, groups: reference(z, groups)[0],
        "compiled": torch.compile(lambda z, groups: reference(z, groups)[0], dynamic=False),
        "loss alone": loss_alone,
        "loss alone, compiled": torch.compile(loss_alone, dynamic=False),
    }
    with suppress(ImportError):
        loss = peer("lightly.loss").NTXentLoss(temperature=1.0).to(device)
        functions["lightly"] = lambda z, groups: loss(z[0::2], z[1::2])
    return functions


def matrix_rate(kind: torch.dtype, device: torch.device, size: int) -> float:
    """Floating-point operations a second of a square matrix product."""
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    return 2 * size**3 / time_function(lambda: a @ b, device, min_seconds=0.5).p50


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what the contestant before left in torch's hands is free too
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return 2**32


def graphed(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`step` as a CUDA graph, so that only GPU time is measured; itself on the CPU."""
    if device.type != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(
    functions: dict[str, Callable],
    n: int,
    features: int,
    kind: torch.dtype,
    norm: float,
    device: torch.device,
) -> list[dict]:
    """Cases of the record: forward and backward of each contestant."""
    cases, steps = {}, {}
    for name, function in functions.items():
        case = {"name": name, "rows": n, "features": features, "type": str(kind).split(".")[1]}
        cases[name] = case = case | {"norm": norm}
        if MATRICES[name] * n * n * 4 > free_bytes(device) / 2:
            case["left_out"] = f"needs {MATRICES[name]} matrices of n x n"
            continue
        step = training_step(function, n, features, kind, norm, device)
        try:
            step()
            # z and the gradient of the step before are held when it begins.
            case["peak_extra_bytes"] = peak_extra_bytes(step, device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            case["failed"] = str(error).splitlines()[0][:200]
        else:
            steps[name] = step
    for name, timing in time_in_turn(steps, device, min_seconds=0.5, min_runs=2).items():
        case = cases[name]
        case["seconds"] = timing
        case["tflops"] = 4 * n * n * features / timing.p50 / 1e12
        # The reference reads a mask's size, which a graph cannot record.
        if device.type == "cuda" and n <= 4096 and name == "pacecore":
            graph = graphed(steps[name], device)
            case["graph_seconds"] = time_function(graph, device, min_seconds=0.2)
    torch._dynamo.reset()  # what was compiled for one size would count against the next
    return list(cases.values())


def training_step(
    function: Callable,
    n: int,
    features: int,
    kind: torch.dtype,
    norm: float,
    device: torch.device,
) -> Callable[[], None]:
    torch.manual_seed(0)
    z = (torch.randn(n, features) * norm * features**-0.5).to(device, kind).requires_grad_()
    groups = (torch.arange(n) // 2).to(device)

    def step() -> None:
        z.grad = None
        function(z, groups).backward()

    return step


def main() -> None:
    parser = parser_of(__doc__)
    numbers = comma_separated(positive)
    parser.add_argument("--rows", type=numbers, help="comma-separated; default by device")
    parser.add_argument("--features", type=numbers, help="comma-separated; default 512")
    parser.add_argument(
        "--types", type=comma_separated(_type), help=f"of {', '.join(TYPES)}; default by device"
    )
    parser.add_argument(
        "--norms", type=comma_separated(positive_number), help="of the rows of z, about; default 1"
    )
    options = parser.parse_args()
    given = [name for name in ("rows", "features", "types", "norms") if getattr(options, name)]
    if options.quick and given:
        parser.error(f"--quick has cases of its own, so --{given[0]} has no meaning beside it")
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    on_cuda = device.type == "cuda"
    rates: dict[str, float] = {}
    cases: list[dict] = []
    for n, features, word, norm in sizes(options, on_cuda):
        kind = TYPES[word]
        if word not in rates:
            rates[word] = matrix_rate(kind, device, 8192 if on_cuda else 1024)
        functions = contestants(device)
        if options.quick and (on_cuda or n > 512):  # compiling takes longer than all the rest
            functions = {w: each for w, each in functions.items() if "compiled" not in w}
        for case in measure(functions, n, features, kind, norm, device):
            if "tflops" in case:
                case["share"] = case["tflops"] * 1e12 / rates[word]
            cases.append(case)
            print(words(case), flush=True)
        # Again after each size, so that a run which is cut off leaves what it has.
        path = write_record(options.out, "info_nce", options.device, cases)
    print(f"record: {path}")


def sizes(options: argparse.Namespace, on_cuda: bool) -> list[tuple[int, int, str, float]]:
    """Rows, features, type and norm of each case, the cheap ones first."""
    if options.quick:
        return QUICK_CUDA if on_cuda else QUICK_CPU
    # On the CPU eager needs 8 GB at 16,384 rows, and minutes beyond.
    return [
        (n, features, kind, norm)
        for n in options.rows or [n for n in ROWS if on_cuda or n <= 16384]
        for features in options.features or [512]
        for kind in options.types or (["bfloat16", "float32"] if on_cuda else ["float32"])
        for norm in options.norms or [1.0]
    ]


def _type(word: str) -> str:
    if word not in TYPES:
        raise argparse.ArgumentTypeError(f"must be of {', '.join(TYPES)}, got {word!r}")
    return word


def words(case: dict) -> str:
    head = f"{case['type']:9} {case['rows']:7} x {case['features']:<4} {case['name']:20}"
    head += f" norm {case['norm']:<4g}"
    if "seconds" not in case:
        return f"{head} {case.get('left_out') or case.get('failed')}"
    time = case["seconds"]
    return (
        f"{head} {1e3 * time.p20:9.3f} {1e3 * time.p50:9.3f} {1e3 * time.p80:9.3f} ms"
        f"  {case['tflops']:7.3f} TFLOP/s {100 * case['share']:5.1f} %"
        f"  {case['peak_extra_bytes'] / 1e6:8.1f} MB extra"
    )


if __name__ == "__main__":
    run_main(main)
