"""The names of `files` at their earlier place, until its last importers have moved."""

from .files import read_sealed, seal, write_sealed

__all__ = [
    "read_sealed",
    "seal",
    "write_sealed",
]
