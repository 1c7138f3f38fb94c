"""The command line: ``art-robust``, a file a command."""

from .app import app, main

__all__ = ["app", "main"]
