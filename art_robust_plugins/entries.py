"""The names of `files` at their earlier place, until its last importers have moved."""

from .files import Entry, shorten

__all__ = [
    "Entry",
    "shorten",
]
