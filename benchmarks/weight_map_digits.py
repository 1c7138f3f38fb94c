"""What do weight maps give under noise and under attack, beyond their kernels alone? On real 8x8 digits.

    python benchmarks/weight_map_digits.py [--workers 2] [--quick]

Three seeds; the whole test set clean and under noise, its first 100 images under FGSM, PGD-20 and standard AutoAttack
at three eps (Linf). See weight_maps.py for the rows. Work in progress is kept under runs/weight_map_digits, and taken
up again when restarted.
"""

from __future__ import annotations

from weight_maps import Setup, run

SETUP = Setup(
    data="digits",
    network="small-cnn",
    train=1437,
    epochs=30,
    batch_size=64,
    eps=(0.05, 0.1, 0.15),
    points=100,
)

if __name__ == "__main__":
    run("weight_map_digits", SETUP, __doc__)
