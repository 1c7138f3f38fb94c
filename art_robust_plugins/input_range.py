"""The names of `bridge` at their earlier place, until its last importers have moved."""

from .bridge import RANGE_TOLERANCE, InputRange, bounded_range, read_clip_values

__all__ = [
    "RANGE_TOLERANCE",
    "InputRange",
    "bounded_range",
    "read_clip_values",
]
