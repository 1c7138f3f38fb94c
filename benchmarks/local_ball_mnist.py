"""Does a weak adversary with the local ball reach the strong one, and at what share of its time? On MNIST at Linf 0.3.

    python benchmarks/local_ball_mnist.py --data DIR [--workers 2] [--search] [--quick]

Standard AutoAttack on the first 1000 test images; three seeds of most rows, one of those that are furthest from the
question. eps grows in the first epochs of every row. See local_ball.py for the rows. DIR holds mnist.npz as ART's
loader keeps it.
Work in progress is kept under runs/local_ball_mnist, and taken up again when restarted.
"""

from __future__ import annotations

from local_ball import Setup, run

SETUP = Setup(
    data="mnist",
    network="2c2f",
    eps=0.3,
    epochs=20,
    batch_size=100,
    learning_rate=2e-3,
    warmup=8,
    train=10_000,
    points=1000,
    timed=5000,
    context_seeds=(0,),
)

if __name__ == "__main__":
    run("local_ball_mnist", SETUP, __doc__)
