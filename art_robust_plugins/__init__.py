"""Robust training, certification and standard evaluation for ART and PyTorch."""

from .threat import ThreatModel

__all__ = ["ThreatModel"]
