"""Instruments, which attach to a network while it trains, and the parts that they share."""

from .protocol import (
    Instrument,
    LayerPattern,
    check_instruments,
    check_pattern,
    in_order,
    join_instruments,
    list_patterns,
    select_modules,
)

__all__ = [
    "Instrument",
    "LayerPattern",
    "check_instruments",
    "check_pattern",
    "in_order",
    "join_instruments",
    "list_patterns",
    "select_modules",
]
