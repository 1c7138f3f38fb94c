"""Does layerwise adversarial training regularise, when images are few and when they are not? On real 8x8 digits.

    python benchmarks/layerwise_digits.py [--workers 2] [--quick]

Three seeds; the whole test set under noise and under standard AutoAttack at Linf 0.05. See layerwise.py for the rows.
Work in progress is kept under runs/layerwise_digits, and taken up again when restarted.
"""

from __future__ import annotations

from layerwise import Setup, run

SETUP = Setup(data="digits", eps=0.05, noise=0.3, train={100: 200, 1437: 30}, points=360)

if __name__ == "__main__":
    run("layerwise_digits", SETUP, __doc__)
