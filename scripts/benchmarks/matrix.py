"""The physical limit: how fast the machine multiplies matrices, measured beside what is made of such products."""

from collections.abc import Callable, Iterable

import torch

from ezclip.utils.tables import as_markdown_table
from ezclip.utils.timing import Timing, measure, summarize


DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
# Sides of square matrices. A processor is at its best with the first; an accelerator wants larger ones.
SQUARES, ACCELERATOR_SQUARES = (2048,), (2048, 4096, 8192)
# Seconds that a product is repeated for, so that starting it and waiting for it count for little.
LEAST_SECONDS = 0.02

Shape = tuple[int, int, int]


class MatrixProducts:
    """
    Products of an (m, k) and a (k, n) matrix, as contenders beside models: square ones, and those of a model's layers.

    Args:
        shapes (`Iterable[tuple[int, int, int]]`):
            m, k and n of a model's products.
        precisions (`Iterable[str]`):
            Of `DTYPES`.
        device (`torch.device`):
            Where to multiply.
    """

    def __init__(self, shapes: Iterable[Shape], precisions: Iterable[str], device: torch.device):
        squares = SQUARES if device.type == "cpu" else ACCELERATOR_SQUARES
        shapes = dict.fromkeys([*((side, side, side) for side in squares), *shapes])
        self.products = {
            f"{m} × {k} × {n} {precision}": (precision, (m, k, n)) for precision in precisions for m, k, n in shapes
        }
        self.device, self.repeats = device, {}

    def contenders(self) -> dict[str, Callable[[], None]]:
        """Return the products to time, by name."""
        return {name: self._make(name, *product) for name, product in self.products.items()}

    def _make(self, name: str, precision: str, shape: Shape) -> Callable[[], None]:
        m, k, n = shape
        left, right = (torch.randn(size, device=self.device).to(DTYPES[precision]) for size in ((m, k), (n, k)))
        result = torch.empty(m, n, dtype=DTYPES[precision], device=self.device)

        def multiply(times: int):
            for _ in range(times):
                torch.mm(left, right.t(), out=result)

        once = measure({name: lambda: multiply(1)}, 1, self.device)[name].wall[0]
        self.repeats[name] = max(1, min(1000, round(LEAST_SECONDS / once)))
        return lambda: multiply(self.repeats[name])

    def rates(self, timings: dict[str, Timing]) -> dict[str, dict]:
        """
        Return for each precision the best rate of the products: `flops_per_second` (see [`summarize`]; a
        multiplication and an addition are two), its `shape`, and the medians of all `shapes`.
        """
        found = {}
        for name, (precision, (m, k, n)) in self.products.items():
            operations = 2 * m * k * n * self.repeats[name]
            found.setdefault(precision, {})[name] = summarize([operations / wall for wall in timings[name].wall])
        rates = {}
        for precision, products in found.items():
            best = max(products, key=lambda name: products[name]["median"])
            rates[precision] = {
                "shape": list(self.products[best][1]),
                "flops_per_second": products[best],
                "shapes": {name: product["median"] for name, product in products.items()},
            }
        return rates


def share_of(macs: float, seconds: float, rates: dict[str, dict], precision: str) -> float:
    """Return the share of the matrix rate that the multiply-accumulates reach."""
    return 2 * macs / seconds / rates[precision]["flops_per_second"]["median"]


def rates_as_text(rates: dict[str, dict]) -> str:
    """Return the matrix rates as text."""
    rows = []
    for precision, rate in rates.items():
        median, (low, high) = rate["flops_per_second"]["median"], rate["flops_per_second"]["quartiles"]
        size = " × ".join(map(str, rate["shape"]))
        rows.append([precision, f"{median / 1e9:.0f} ({low / 1e9:.0f}-{high / 1e9:.0f})", size])
    return as_markdown_table(["matrix product", "GFLOP/s (quartiles)", "at its best (m × k × n)"], rows)


def is_faster_in_bf16(device: torch.device) -> bool:
    """Return whether bfloat16 products are faster than float32 here."""
    side = SQUARES[0]
    products = MatrixProducts([(side, side, side)], DTYPES, device)
    rates = products.rates(measure(products.contenders(), 3, device))
    return rates["bf16"]["flops_per_second"]["median"] > rates["float32"]["flops_per_second"]["median"]
