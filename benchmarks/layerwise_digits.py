"""Does layerwise adversarial training regularise, when images are few and when they are not? On real 8x8 digits.

    python benchmarks/layerwise_digits.py [--workers 2] [--quick]

Three seeds; the whole test set clean and under noise, its first 150 images under standard AutoAttack at Linf 0.1. See
layerwise.py for the rows. Work in progress is kept under runs/layerwise_digits, and taken up again when restarted.
"""

from __future__ import annotations

from layerwise import Setup, run

SETUP = Setup(
    data="digits",
    network="small-cnn",
    hidden="layers.7",
    eps=0.1,
    noise=0.3,
    train={100: 200, 1437: 30},
    points=150,
)

if __name__ == "__main__":
    run("layerwise_digits", SETUP, __doc__)
