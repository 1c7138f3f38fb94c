"""Spellings of options other than those that the help shows: earlier ones, and those of the Python arguments."""

from __future__ import annotations

SPELLINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "--accumulate": ("--accumulation-steps",),
        "--augment": ("--augmentation",),
        "--bf16": ("--mixed-precision", "bf16"),
        "--no-bf16": ("--mixed-precision", "no"),
        "--clip": ("--max-gradient-norm",),
        "--fused": ("--fused-optimizer",),
        "--instruments": ("--with",),
        "--learning-rate": ("--lr",),
        "--milestone": ("--milestones",),
        "--nb-epochs": ("--epochs",),
        "--network": ("--model",),
        "--warmup": ("--warmup-epochs",),
    },
    "evaluate": {"--attack": ("--attacks",), "--transfers": ("--transfer",)},
}
"""A command -> an option's other spelling -> the current words."""


def replace_spellings(command: str | None, words: list[str]) -> list[str]:
    """Replace each other spelling in the words of a command line; what follows ``--`` stays as it is."""
    known = SPELLINGS.get(command or "", {})
    current: list[str] = []
    for number, word in enumerate(words):
        if word == "--":
            return [*current, *words[number:]]
        option, equals, value = word.partition("=")
        option, *rest = known.get(option, (option,))
        current += [f"{option}{equals}{value}", *rest]
    return current
