"""The harness of the benchmarks: time functions and matrix products in the same rounds, and write tables."""

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import torch

from ezclip.utils.tables import as_table
from ezclip.utils.timing import Timing, compare, measure, summarize


DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
# Sides of square matrices. A CPU reaches its best rate with the first; an accelerator needs larger ones.
SQUARES, ACCELERATOR_SQUARES = (2048,), (2048, 4096, 8192)
# A product is repeated for so many seconds, so that launch and synchronization hardly count.
LEAST_SECONDS = 0.02

Shape = tuple[int, int, int]


@dataclass
class Contender:
    """
    A function to time.

    Args:
        run (`Callable[[], object]`):
            The function. `result` holds what its last call returned.
        precision (`str`):
            `"float32"`, or any other name for bfloat16.
        num_items (`int`):
            Clips or texts of one call.
        macs (`int`):
            Multiply-accumulates of one call.
        warm_up (`Callable[[], object]`, *optional*):
            A shorter function to run in the warm-up round.
    """

    run: Callable[[], object]
    precision: str
    num_items: int
    macs: int
    warm_up: Callable[[], object] | None = None
    result: object = None

    def __call__(self):
        """Run the function and keep its result."""
        self.result = self.run()


class MatrixProduct:
    """A product of an (m, k) and a (k, n) matrix to time."""

    def __init__(self, shape: Shape, precision: str, device: torch.device):
        (m, k, n), dtype = shape, DTYPES[precision]
        self.left, self.right = (torch.randn(size, device=device).to(dtype) for size in ((m, k), (n, k)))
        self.result = torch.empty(m, n, dtype=dtype, device=device)
        self.shape, self.precision, self.repeats = shape, precision, 1
        once = measure({"": self}, 1, device)[""].wall[0]
        self.repeats = max(1, min(1000, round(LEAST_SECONDS / once)))

    def __call__(self):
        """Multiply."""
        for _ in range(self.repeats):
            torch.mm(self.left, self.right.t(), out=self.result)

    def rate(self, timing: Timing) -> dict:
        """Return the shape and the operations per second. A multiply-accumulate is two operations."""
        operations = 2 * math.prod(self.shape) * self.repeats
        return {"shape": list(self.shape), "flops_per_second": summarize([operations / wall for wall in timing.wall])}


def matrix_precision(precision: str) -> str:
    """Return the precision of the matrix products to compare with."""
    return "float32" if precision == "float32" else "bf16"


def measure_beside_products(
    contenders: dict[Hashable, Contender],
    precisions: Iterable[str],
    shapes: Iterable[Shape],
    rounds: int,
    device: torch.device,
) -> tuple[dict[Hashable, Timing], dict[str, dict]]:
    """
    Time contenders and matrix products in turn. A contender may fail.

    Args:
        contenders (`dict[Hashable, Contender]`):
            The contenders by name.
        precisions (`Iterable[str]`):
            Precisions of the products.
        shapes (`Iterable[tuple[int, int, int]]`):
            m, k and n of the products of a model. Square products are added.
        rounds (`int`):
            Number of timed rounds.
        device (`torch.device`):
            The device to compute on.

    Returns:
        The timings, and for each precision the matrix rate: shape and rate of its fastest product.
    """
    squares = SQUARES if device.type == "cpu" else ACCELERATOR_SQUARES
    shapes = dict.fromkeys([*((side, side, side) for side in squares), *shapes])
    precisions = dict.fromkeys(map(matrix_precision, precisions))
    products = [MatrixProduct(shape, precision, device) for precision in precisions for shape in shapes]
    timings = measure(
        {**contenders, **{product: product for product in products}},
        rounds,
        device,
        may_fail=True,
        warm_up={name: one.warm_up for name, one in contenders.items() if one.warm_up is not None},
    )
    rates = {}
    for product in products:
        rates.setdefault(product.precision, []).append(product.rate(timings[product]))
    return timings, {name: max(found, key=lambda rate: _median_rate(rate)) for name, found in rates.items()}


def _median_rate(rate: dict) -> float:
    return rate["flops_per_second"]["median"]


def measure_contenders(
    contenders: dict[Hashable, Contender],
    shapes: Iterable[Shape],
    rounds: int,
    device: torch.device,
    items: str = "clips",
) -> tuple[dict[Hashable, dict], dict[str, dict]]:
    """
    Time contenders; see [`measure_beside_products`].

    Returns:
        For each contender `precision`, `seconds`, the items per second and `share_of_matrix_rate`, or in `failed` its
        error. Then the matrix rates.
    """
    precisions = [contender.precision for contender in contenders.values()]
    timings, rates = measure_beside_products(contenders, precisions, shapes, rounds, device)
    rows = {}
    for name, contender in contenders.items():
        rows[name] = {"precision": contender.precision}
        if timings[name].failed is not None:
            rows[name]["failed"] = timings[name].failed
            continue
        seconds = summarize(timings[name].wall)
        rate = 2 * contender.macs / seconds["median"]
        rows[name] |= {
            "seconds": seconds,
            f"{items}_per_second": contender.num_items / seconds["median"],
            "share_of_matrix_rate": rate / _median_rate(rates[matrix_precision(contender.precision)]),
        }
    return rows, rates


def ratio(rows: dict[Hashable, dict], name: Hashable, baseline: Hashable) -> dict | None:
    """Return the time of a contender relative to a baseline, or `None` if one of them did not run or failed."""
    seconds = [rows.get(key, {}).get("seconds") for key in (name, baseline)]
    return None if None in seconds else compare(*(one["rounds"] for one in seconds))


def is_faster_in_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies faster in bfloat16 than in float32."""
    _, rates = measure_beside_products({}, DTYPES, [], 3, device)
    return _median_rate(rates["bf16"]) > _median_rate(rates["float32"])


def rates_as_table(rates: dict[str, dict]) -> str:
    """Return the matrix rates as a table."""
    rows = [{**rate, "name": name, "shape": " × ".join(map(str, rate["shape"]))} for name, rate in rates.items()]
    columns = {"matrix product": ("name",), "GFLOP/s (quartiles)": ("flops_per_second", ".0f", 1e-9)}
    return as_table(rows, {**columns, "best shape (m × k × n)": ("shape",)})
