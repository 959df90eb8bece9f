"""The harness of the benchmarks: time functions and matrix products in the same rounds, and write tables."""

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import torch

from ezclip.utils.tables import as_table
from ezclip.utils.timing import Timing, compare, measure, summarize
from modeling_ezclip import OneDNNLinear


DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
# Sides of square matrices. A CPU reaches its best rate with the first; an accelerator needs larger ones.
SQUARES, ACCELERATOR_SQUARES = (2048,), (2048, 4096, 8192)
# Repeat a product for at least this time, so that launch, synchronization and interruptions hardly count.
LEAST_SECONDS = 0.1
# If the matrix rate moved by more than this within a run, its ratios say nothing.
MOST_MOVEMENT = 0.2
ONEDNN_LINEAR = "oneDNN linear"

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


def kernels_of(device: torch.device, precision: str) -> list[str]:
    """Return the kernels to measure: the library behind PyTorch's `mm`, and on a CPU oneDNN's linear layer."""
    if device.type != "cpu":
        return [f"mm ({'cuBLAS' if device.type == 'cuda' else device.type})"]
    has_onednn = torch.backends.mkldnn.is_available()
    if precision == "float32":
        library = "MKL" if torch.backends.mkl.is_available() else "BLAS"
    else:
        library = "oneDNN" if has_onednn else "PyTorch"
    return [f"mm ({library})", *([ONEDNN_LINEAR] if has_onednn else [])]


class MatrixProduct:
    """A product of an (m, k) and a (k, n) matrix by a kernel of [`kernels_of`] to time."""

    def __init__(self, shape: Shape, precision: str, device: torch.device, kernel: str):
        self.kernel = kernel
        (m, k, n), dtype = shape, DTYPES[precision]
        self.left, self.right = (torch.randn(size, device=device).to(dtype) for size in ((m, k), (n, k)))
        self.result = torch.empty(m, n, dtype=dtype, device=device)
        self.shape, self.precision, self.repeats = shape, precision, 1
        once = measure({"": self}, 1, device)[""].wall[0]
        self.repeats = max(1, min(1000, round(LEAST_SECONDS / once)))

    def __call__(self):
        """Multiply `repeats` times."""
        for _ in range(self.repeats):
            if self.kernel == ONEDNN_LINEAR:
                OneDNNLinear.multiply(self.left, self.right)
            else:
                torch.mm(self.left, self.right.t(), out=self.result)

    def rate(self, timing: Timing) -> dict:
        """Return kernel, shape, operations per second (a multiply-accumulate is two), and how far they moved."""
        operations = 2 * math.prod(self.shape) * self.repeats
        rates = summarize([operations / wall for wall in timing.wall])
        moved = max(rates["rounds"]) / min(rates["rounds"]) - 1
        return {"kernel": self.kernel, "shape": list(self.shape), "flops_per_second": rates, "moved": moved}


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
        If the matrix rate of its precision moved too far, `share_of_matrix_rate` is None, and so is its [`ratio`].
        By precision the matrix rate: kernel, shape, rate and movement of the fastest product.
    """
    squares = SQUARES if device.type == "cpu" else ACCELERATOR_SQUARES
    shapes = dict.fromkeys([*((side, side, side) for side in squares), *shapes])
    precisions = [*precisions, *(contender.precision for contender in contenders.values())]
    products = [
        MatrixProduct(shape, precision, device, kernel)
        for precision in dict.fromkeys(map(_matrix_precision, precisions))
        for kernel in kernels_of(device, precision)
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
        rate, limit = 2 * contender.macs / seconds["median"], rates[_matrix_precision(contender.precision)]
        is_steady = limit["moved"] <= MOST_MOVEMENT
        rows[name] |= {
            "seconds": seconds,
            f"{items}_per_second": contender.num_items / seconds["median"],
            "share_of_matrix_rate": rate / _median_rate(limit) if is_steady else None,
        }
    return rows, rates


def _matrix_precision(precision: str) -> str:
    return "float32" if precision == "float32" else "bf16"


def _median_rate(rate: dict) -> float:
    return rate["flops_per_second"]["median"]


def ratio(rows: dict[Hashable, dict], name: Hashable, baseline: Hashable) -> dict | None:
    """Return the time of a contender relative to a baseline.

    Return `None` if one of them did not run or failed, or the matrix rate moved by more than `MOST_MOVEMENT`.
    """
    compared = [rows.get(key, {}) for key in (name, baseline)]
    seconds = [row.get("seconds") for row in compared]
    is_steady = all(row.get("share_of_matrix_rate") is not None for row in compared)
    return None if None in seconds or not is_steady else compare(*(one["rounds"] for one in seconds))


def is_faster_in_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies faster in bfloat16 than in float32."""
    _, rates = measure_contenders({}, [], 3, device, precisions=DTYPES)
    return _median_rate(rates["bf16"]) > _median_rate(rates["float32"])


def rates_as_table(rates: dict[str, dict]) -> str:
    """Return the matrix rates as a table, with [`say_moved`]."""
    rows = [{**rate, "name": name, "shape": " × ".join(map(str, rate["shape"]))} for name, rate in rates.items()]
    columns = {
        "matrix product": ("name",),
        "fastest kernel": ("kernel",),
        "GFLOP/s (quartiles)": ("flops_per_second", ".0f", 1e-9),
        "moved": ("moved", ".0%"),
        "best shape (m × k × n)": ("shape",),
    }
    return "\n\n".join([as_table(rows, columns), *say_moved(rates)])


def say_moved(rates: dict[str, dict]) -> list[str]:
    """Say where there are no ratios because a matrix rate moved."""
    return [
        f"The matrix rate in {name} moved by {rate['moved']:.0%} within the run, more than {MOST_MOVEMENT:.0%}: no "
        "ratios and shares. Run again when nothing else uses the machine."
        for name, rate in rates.items()
        if rate["moved"] > MOST_MOVEMENT
    ]
