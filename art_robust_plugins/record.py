"""The earlier name of `provenance`, which stays: where, when and with what figures were measured."""

from .provenance import PACKAGES, conditions, described, installed, processor, table

__all__ = ["PACKAGES", "conditions", "described", "installed", "processor", "table"]
