"""The report of a network's bound: its operators, each with its norm and its share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .network_bound import OperatorNorm


@dataclass(frozen=True)
class LipschitzReport:
    """The operators that determine a network's Lipschitz bound; ``print`` shows a table.

    Attributes:
        operators: one entry for each linear operator, in the order of the network. In a chain of these and functions
            of slope 1, ``lipschitz`` is the product of their norms.
        lipschitz: the proven bound (L2) of all logits together, per unit of the estimator's input.
        largest_pair: the largest of the constants K of differences of two logits.
    """

    operators: tuple[OperatorNorm, ...]
    lipschitz: float
    largest_pair: float

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The operators as plain data, one dictionary each with the fields of `OperatorNorm`."""
        return [asdict(row) for row in self.operators]

    def __repr__(self) -> str:
        """The table, which a notebook shows."""
        return str(self)

    def __str__(self) -> str:
        table = [["module", "node", "kind", "input", "output", "norm", "proof", "share"]]
        for row in self.operators:
            shapes = ["x".join(map(str, shape)) for shape in (row.input_shape, row.output_shape)]
            table.append([row.module, row.node, row.kind, *shapes, f"{row.norm:.6g}", row.method, f"{row.share:+.1%}"])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
        bounds = f"all logits: {self.lipschitz:.6g}, difference of two: at most {self.largest_pair:.6g}"
        return "\n".join([*lines, bounds])
