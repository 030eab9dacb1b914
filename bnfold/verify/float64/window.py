"""The sliding window of convolutions and pools: which elements each tap of a kernel sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from bnfold.verify.float64.builder import Op, Term

FAR = (1 << 63) - 1  # an end of a Slice: all there is


def same_pads(total: Sequence[int], upper: bool) -> list[int]:
    """Pads of auto_pad SAME: half on each side, the odd one at the end (upper) or at the start."""
    low = [int(n / 2) if upper else int((n + 1) / 2) for n in total]
    return [*low, *(n - first for n, first in zip(total, low, strict=True))]


class Window:
    """Strides, dilations and pads of a sliding window, however the node states them.

    Args:
        op: the node.
        kernel: its sizes.
        transposed: ConvTranspose, whose auto_pad SAME is another thing and left to the caller.
        pool: where the stride is beyond the kernel, auto_pad SAME skips elements on both sides, as ONNX Runtime's pools
            do; its convolutions skip at the end only.

    Raises: Unsupported if auto_pad needs a shape that isn't known.
    """

    def __init__(self, op: Op, kernel: Sequence[int], transposed: bool = False, pool: bool = False) -> None:
        rank = len(kernel)
        self.kernel = list(kernel)
        self.strides: list[int] = list(op.attribute("strides") or [1] * rank)
        self.dilations: list[int] = list(op.attribute("dilations") or [1] * rank)
        self.spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        mode = op.attribute("auto_pad", "NOTSET")
        self.pads: list[int] = list(op.attribute("pads") or [0] * 2 * rank)
        if mode in ("SAME_UPPER", "SAME_LOWER") and not transposed:
            cases = zip(op.shape(0)[2:], self.spans, self.strides, strict=True)
            total = [(-(-n // s) - 1) * s + span - n for n, span, s in cases]
            self.pads = same_pads(total if pool else [max(n, 0) for n in total], mode == "SAME_UPPER")
        elif mode not in ("NOTSET", ""):
            self.pads = [0] * 2 * rank

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def low(self) -> list[int]:
        """Pads before the first element, per spatial axis."""
        return self.pads[: self.rank]

    @property
    def high(self) -> list[int]:
        """Pads after the last element, per spatial axis."""
        return self.pads[self.rank :]

    @property
    def reach(self) -> list[int]:
        """Whole strides from the first to the last tap, per spatial axis."""
        return [(span - 1) // s for span, s in zip(self.spans, self.strides, strict=True)]

    def sizes(self, spatial: Sequence[int]) -> list[int]:
        """Size of the output, without ceil_mode."""
        cases = zip(spatial, self.low, self.high, self.spans, self.strides, strict=True)
        return [(n + low + high - span) // s + 1 for n, low, high, span, s in cases]

    def offsets(self) -> Iterator[list[int]]:
        """Distance of each tap from the first, row-major."""
        for tap in product(*map(range, self.kernel)):
            yield [t * d for t, d in zip(tap, self.dilations, strict=True)]

    def taps(self, padded: Term) -> Iterator[Term]:
        """What each tap of the kernel sees, row-major: one element per position of the window."""
        axes = list(range(2, 2 + self.rank))
        for starts in self.offsets():
            left = [span - 1 - start for span, start in zip(self.spans, starts, strict=True)]
            plain = not any((*starts, *left)) and all(s == 1 for s in self.strides)
            yield padded if plain else padded.slice(starts, [-n if n else FAR for n in left], axes, self.strides)
