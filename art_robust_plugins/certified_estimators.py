"""The names of `bridge` at their earlier place, until its last importers have moved."""

from .bridge import check_certified

__all__ = [
    "check_certified",
]
