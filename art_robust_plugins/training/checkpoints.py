"""The earlier place of `engine.checkpointer`, from which the command line and the runs take the checkpoint's name."""

from .engine.checkpointer import CHECKPOINT

__all__ = ["CHECKPOINT"]
