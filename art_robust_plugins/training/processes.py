"""The earlier place of `engine.processes`, from which the command line, the runs and their tests import."""

from .engine.processes import Processes, ProcessLostError, Share

__all__ = ["ProcessLostError", "Processes", "Share"]
