"""The harness of the benchmarks: time functions and matrix products in the same rounds, and write tables."""

import contextlib
import math
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ezclip.utils.tables import as_table
from ezclip.utils.timing import Timing, compare, measure, summarize
from modeling_ezclip import KERNELS_VARIABLE, OneDNNLinear


DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
# Sides of square matrices. A CPU reaches its best rate with the first; an accelerator needs larger ones.
SQUARES, ACCELERATOR_SQUARES = (2048,), (2048, 4096, 8192)
# Repeat a product for at least this time, so that launch and synchronization hardly count.
LEAST_SECONDS = 0.02
# Ratios are left out if the matrix rate moved by more than this part of its median within a run.
MOST_MOVED = 0.2

Shape = tuple[int, int, int]


@dataclass
class Contender:
    """A function to time, and the work of one call."""

    run: Callable[[], object]
    precision: str  # "float32", or another name for bfloat16
    num_items: int  # clips or texts
    macs: int  # multiply-accumulates
    warm_up: Callable[[], object] | None = None  # a shorter function for the warm-up round
    result: object = None  # of the last call

    def __call__(self):
        """Run the function and keep its result."""
        self.result = self.run()


def multiply_by_mm(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Return `left @ right.T` as PyTorch computes it, in the memory of `result`."""
    return torch.mm(left, right.t(), out=result)


def multiply_by_onednn(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Return `left @ right.T` by oneDNN's linear layer, which takes no `result`."""
    return OneDNNLinear.multiply(left, right)


@contextlib.contextmanager
def kernels_as_shipped() -> Iterator[None]:
    """Let modules of ezclip run in PyTorch's kernels, as other software does."""
    before = os.environ.get(KERNELS_VARIABLE)
    os.environ[KERNELS_VARIABLE] = "torch"
    try:
        yield
    finally:
        os.environ.pop(KERNELS_VARIABLE)
        if before is not None:
            os.environ[KERNELS_VARIABLE] = before


def find_kernels(precision: str, device: torch.device) -> dict[str, Callable]:
    """Return the kernels of a matrix product by name. `ONEDNN_VERBOSE=1` shows the names of those of a CPU."""
    if device.type != "cpu":
        return {"cuBLAS" if torch.version.cuda and device.type == "cuda" else f"mm on {device.type}": multiply_by_mm}
    if not torch.backends.mkldnn.is_available():
        return {"MKL" if torch.backends.mkl.is_available() else "BLAS": multiply_by_mm}
    if precision == "bf16":  # `torch.mm` takes oneDNN too
        return {"oneDNN": multiply_by_mm}
    return {"MKL" if torch.backends.mkl.is_available() else "BLAS": multiply_by_mm, "oneDNN": multiply_by_onednn}


class MatrixProduct:
    """A product of an (m, k) and a (k, n) matrix to time, by one of [`find_kernels`]."""

    def __init__(self, shape: Shape, precision: str, device: torch.device, kernel: str):
        (m, k, n), dtype = shape, DTYPES[precision]
        self.kernel, self.multiply = kernel, find_kernels(precision, device)[kernel]
        self.left, self.right = (torch.randn(size, device=device).to(dtype) for size in ((m, k), (n, k)))
        self.result = torch.empty(m, n, dtype=dtype, device=device)
        self.shape, self.precision, self.repeats = shape, precision, 1
        once = measure({"": self}, 1, device)[""].wall[0]
        self.repeats = max(1, min(1000, round(LEAST_SECONDS / once)))

    def __call__(self):
        """Multiply `repeats` times."""
        for _ in range(self.repeats):
            self.multiply(self.left, self.right, self.result)

    def rate(self, timing: Timing) -> dict:
        """Return shape, kernel, operations per second and [`movement`]. A multiply-accumulate is two operations."""
        operations = 2 * math.prod(self.shape) * self.repeats
        rates = [operations / wall for wall in timing.wall]
        return {
            "kernel": self.kernel,
            "shape": list(self.shape),
            "flops_per_second": summarize(rates),
            "moved": movement(rates),
        }


def movement(rates: list[float]) -> float:
    """
    Return by which part of its median a rate moved within a run: (highest - lowest) / median.

    From five rounds on, the highest and the lowest round are left out. One interrupted product of 20 ms, which does
    not change a median, then says nothing. A machine that is slower in two rounds still shows.
    """
    rates = sorted(rates)
    kept = rates[1:-1] if len(rates) >= 5 else rates
    return float((kept[-1] - kept[0]) / np.median(rates))


def measure_contenders(
    contenders: dict[Hashable, Contender],
    shapes: Iterable[Shape],
    rounds: int,
    device: torch.device,
    items: str = "clips",
    precisions: Iterable[str] = (),
) -> tuple[dict[Hashable, dict], dict[str, dict]]:
    """
    Time contenders, square matrix products and those of `shapes` (m, k, n) in turn.

    `precisions` are precisions of products beside those of the contenders.

    Returns:
        By contender `precision`, `seconds`, the items per second and `share_of_matrix_rate`, or in `failed` its error.
        `machine_moved` is there if the matrix rate of the precision moved by more than `MOST_MOVED`, and the share is
        then left out, as [`ratio`] leaves out ratios. By precision the matrix rate: kernel, shape, rate and
        [`movement`] of the fastest product.
    """
    squares = SQUARES if device.type == "cpu" else ACCELERATOR_SQUARES
    shapes = dict.fromkeys([*((side, side, side) for side in squares), *shapes])
    precisions = [*precisions, *(contender.precision for contender in contenders.values())]
    products = [
        MatrixProduct(shape, precision, device, kernel)
        for precision in dict.fromkeys(map(_matrix_precision, precisions))
        for kernel in find_kernels(precision, device)
        for shape in shapes
    ]
    timings = measure(
        {**contenders, **dict(zip(products, products))},
        rounds,
        device,
        may_fail=True,
        warm_up={name: one.warm_up for name, one in contenders.items() if one.warm_up is not None},
    )
    rates, rows = {}, {}
    for product in products:
        rate = product.rate(timings[product])
        if _median_rate(rate) > _median_rate(rates.setdefault(product.precision, rate)):
            rates[product.precision] = rate
    for name, contender in contenders.items():
        rows[name] = {"precision": contender.precision}
        if timings[name].failed is not None:
            rows[name]["failed"] = timings[name].failed
            continue
        seconds = summarize(timings[name].wall)
        rows[name] |= {"seconds": seconds, f"{items}_per_second": contender.num_items / seconds["median"]}
        matrix = rates[_matrix_precision(contender.precision)]
        share = 2 * contender.macs / seconds["median"] / _median_rate(matrix)
        rows[name] |= unless_moved(matrix["moved"], {"share_of_matrix_rate": share})
    return rows, rates


def unless_moved(moved: float, ratios: dict) -> dict:
    """Return ratios, or in their place `machine_moved` if the matrix rate moved too much for them."""
    return ratios if moved <= MOST_MOVED else {"machine_moved": moved}


def _matrix_precision(precision: str) -> str:
    return "float32" if precision == "float32" else "bf16"


def _median_rate(rate: dict) -> float:
    return rate["flops_per_second"]["median"]


def ratio(rows: dict[Hashable, dict], name: Hashable, baseline: Hashable) -> dict | None:
    """
    Return the time of a contender relative to a baseline.

    It is `None` if one of them did not run or failed, and `{"moved": part}` if the machine moved.
    """
    both = [rows.get(key, {}) for key in (name, baseline)]
    if not all("seconds" in row for row in both):
        return None
    moved = [row["machine_moved"] for row in both if "machine_moved" in row]
    return {"moved": max(moved)} if moved else compare(*(row["seconds"]["rounds"] for row in both))


def is_faster_in_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies faster in bfloat16 than in float32."""
    _, rates = measure_contenders({}, [], 3, device, precisions=DTYPES)
    return _median_rate(rates["bf16"]) > _median_rate(rates["float32"])


def results_as_table(rows: Iterable[dict], columns: dict[str, tuple]) -> str:
    """Return rows of results as a table. The cells of ratios say so if the machine moved."""
    return as_table(
        [
            {
                **({"share_of_matrix_rate": _say_moved(row["machine_moved"])} if "machine_moved" in row else {}),
                **{
                    key: _say_moved(value["moved"]) if isinstance(value, dict) and "moved" in value else value
                    for key, value in row.items()
                },
            }
            for row in rows
        ],
        columns,
    )


def _say_moved(moved: float) -> str:
    return f"machine moved {moved:.0%}"


def rates_as_text(rates: dict[str, dict]) -> str:
    """Return the matrix rates as a table, and a warning if one of them moved too much for ratios."""
    rows = [{**rate, "name": name, "shape": " × ".join(map(str, rate["shape"]))} for name, rate in rates.items()]
    columns = {
        "matrix product": ("name",),
        "kernel": ("kernel",),
        "GFLOP/s (quartiles)": ("flops_per_second", ".0f", 1e-9),
        "moved": ("moved", ".0%"),
        "best shape (m × k × n)": ("shape",),
    }
    return "\n\n".join([as_table(rows, columns), *warn_of_movement(rates)])


def warn_of_movement(rates: dict[str, dict]) -> list[str]:
    """Return a paragraph on the matrix rates, by name, that moved too much for ratios, if there are any."""
    moved = [f"{rate['moved']:.0%} in {name}" for name, rate in rates.items() if rate["moved"] > MOST_MOVED]
    if not moved:
        return []
    return [
        f"The matrix rate of this machine moved by {' and '.join(moved)}, more than {MOST_MOVED:.0%}. The ratios of "
        "these rows are left out. Run again on a quiet machine."
    ]
