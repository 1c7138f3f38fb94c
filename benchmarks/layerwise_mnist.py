"""Does layerwise adversarial training regularise, when images are few and when they are not? On MNIST.

    python benchmarks/layerwise_mnist.py --data DIR [--workers 2] [--quick]

One seed; all 10,000 test images clean and under noise, the first 100 under standard AutoAttack at Linf 0.1. See
layerwise.py for the rows. DIR holds mnist.npz as ART's loader keeps it. Work in progress is kept under
runs/layerwise_mnist, and taken up again when restarted.
"""

from __future__ import annotations

from layerwise import Setup, run

SETUP = Setup(
    data="mnist",
    network="small-cnn",
    network_arguments={"channels": 8, "hidden": 64},
    hidden="layers.7",
    eps=0.1,
    noise=0.3,
    train={500: 60, 20_000: 5},
    points=100,
    seeds=(0,),
)

if __name__ == "__main__":
    run("layerwise_mnist", SETUP, __doc__)
