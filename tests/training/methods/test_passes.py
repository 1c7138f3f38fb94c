"""What a step costs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from art_robust_plugins import (
    LocalBallTrainer,
    PGDTrainer,
    TRADESTrainer,
)

from .adversaries import LINF, X, Y, classifier, plain


class Counted(TorchDispatchMode):
    """Passes through the network's one convolution and one linear layer, as the kernels see them."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.backward = self.to_weights = self.to_linear_weights = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function.name()
        if name == "aten::convolution":
            self.forward += 1
        elif name == "aten::convolution_backward":
            for_input, for_weight, for_bias = args[10]
            assert for_weight == for_bias
            assert for_input != for_weight  # gradients of the input alone, or of the weights alone: x is no leaf then
            self.backward += 1
            self.to_weights += for_weight
        elif name == "aten::mm":
            self.to_linear_weights += tuple(out.shape) in {(10, 36), (36, 10)}
        return out


costs = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 4),
        "global_loss": st.sampled_from(["ce", "kl"]),
        "global_weight": st.sampled_from([None, 0.0, 2.0]),
        "local_weight": st.sampled_from([0.0, 1.0]),
        "clean_weight": st.sampled_from([None, 0.0, 0.5]),
        "local_direction": st.sampled_from(["kl", "ascent"]),
        "smoothness": st.sampled_from(["kl", "logits"]),
        "start": st.sampled_from(["uniform", "previous"]),
        "overfitting": st.sampled_from(["warn", "rollback", "ignore"]),
    }
)


@settings(max_examples=120)
@given(costs)
def test_passes_are_those_that_a_step_takes(changes: dict[str, Any]) -> None:
    if changes["global_weight"] == 0 and changes["local_weight"] == 0:
        changes["local_weight"] = 1.0
    if changes["global_weight"] == 0 and (changes["local_direction"], changes["smoothness"]) != ("kl", "kl"):
        # The last bias cancels in a difference of logits, and the projection may bring xl back to xa.
        changes["clean_weight"] = 0.5
    estimator = classifier(plain())
    trainer = LocalBallTrainer(estimator, threat=LINF, **changes)
    with Counted() as making:
        loss = trainer.training_loss(X[:7], Y[:7])
    assert making.to_weights == making.to_linear_weights == 0
    assert making.backward == trainer.passes.backward - trainer.passes.to_weights
    assert all(parameter.grad is None for parameter in estimator.model.parameters())
    with Counted() as counted:
        loss.backward()
    assert counted.forward == 0
    assert making.forward == trainer.passes.forward
    assert counted.backward == counted.to_weights == counted.to_linear_weights == trainer.passes.to_weights
    assert all(bool(parameter.grad.abs().max() > 0) for parameter in estimator.model.parameters())


@pytest.mark.parametrize("k", [1, 2, 10])
def test_passes_as_documented(k: int) -> None:
    assert LocalBallTrainer(classifier(), threat=LINF, steps=k).passes == (k + 4, k + 3, 2)
    along = LocalBallTrainer(classifier(), threat=LINF, steps=k, local_direction="ascent")
    assert along.passes == (k + 2, k + 2, 2)
    assert PGDTrainer(classifier(), threat=LINF, steps=k).passes == (k + 1, k + 1, 1)
    assert TRADESTrainer(classifier(), threat=LINF, steps=k).passes == (k + 3, k + 2, 2)
