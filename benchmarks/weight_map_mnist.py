"""What do weight maps give under noise and under attack, beyond their kernels alone? On MNIST.

    python benchmarks/weight_map_mnist.py --data DIR [--workers 2] [--quick]

Three seeds; all 10,000 test images clean and under noise, the first 100 under FGSM, PGD-20 and standard AutoAttack at
three eps (Linf). See weight_maps.py for the rows. DIR holds mnist.npz as ART's loader keeps it. Work in progress is
kept under runs/weight_map_mnist, and taken up again when restarted.
"""

from __future__ import annotations

from weight_maps import Setup, run

SETUP = Setup(
    data="mnist",
    network="small-cnn",
    network_arguments={"channels": 8, "hidden": 64},
    train=20_000,
    epochs=5,
    batch_size=100,
    eps=(0.05, 0.1, 0.15),
    points=100,
)

if __name__ == "__main__":
    run("weight_map_mnist", SETUP, __doc__)
