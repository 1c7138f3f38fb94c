"""Does a weak adversary with the local ball reach the strong one, and at what share of its time? On real 8x8 digits.

    python benchmarks/local_ball_digits.py [--workers 2] [--quick]

Three seeds, Linf 0.15, standard AutoAttack on the whole test set. See local_ball.py for the rows. Work in progress is
kept under runs/local_ball_digits, and taken up again when restarted.
"""

from __future__ import annotations

from local_ball import Setup, run

SETUP = Setup(
    data="digits",
    network="small-cnn",
    eps=0.15,
    epochs=20,
    batch_size=64,
    learning_rate=2e-3,
    warmup=0,
    train=1437,
    points=360,
    timed=1437,
)

if __name__ == "__main__":
    run("local_ball_digits", SETUP, __doc__)
