"""``python -m art_robust_plugins``: the command line, also for ``accelerate launch -m``."""

from .cli import main

main()
