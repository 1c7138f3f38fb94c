"""A recipe of one network."""

from __future__ import annotations

RECIPE = """
description = "one network"
data = "digits"
seeds = [0]
[network]
name = "small-cnn"
channels = 4
[training]
epochs = 40
[evaluation]
threats = ["Linf 0.1"]
attacks = ["apgd-ce"]
points = 4
[quick]
train = 64
[[rows]]
name = "plain"
method = "standard"
"""
