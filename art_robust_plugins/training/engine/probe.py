"""A network's outputs for fixed inputs, which show changes that weights, type and text do not show."""

from __future__ import annotations

from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from ...bridge import EstimatorModule, random_inputs
from ...randomness import cuda_devices, restored_random_states, seed_everything

INPUTS = 8
# Ratios of the largest output. Results differ more between devices than between thread counts of one CPU.
_CPU_TOLERANCE, _TOLERANCE = 1e-4, 1e-2


class OutputProbe:
    """The outputs of a classifier with its preprocessing, in evaluation mode, for random inputs in its range."""

    def __init__(self, classifier: PyTorchClassifier) -> None:
        self.module = EstimatorModule(classifier, unit_range=False, fit=True, probabilities=True)
        self.inputs = random_inputs(classifier, INPUTS)

    def state_dict(self) -> dict[str, Any]:
        """The current outputs, [8, outputs], for `matches`."""
        return {"device": self.module.device.type, "outputs": self._outputs(0)}

    def matches(self, state: dict[str, Any]) -> bool:
        """Whether the outputs are those of `state_dict`, up to rounding."""
        device, then, now = self.module.device.type, state["outputs"], self._outputs(0)
        if now.shape != then.shape:
            return False
        if device != state["device"] and not torch.equal(now, self._outputs(1)):
            return True  # a randomised network draws other numbers on another kind of device
        share = _CPU_TOLERANCE if device == state["device"] == "cpu" else _TOLERANCE
        scale = then[then.isfinite()].abs().max().item() if then.isfinite().any() else 1.0
        return torch.allclose(now, then, rtol=0.0, atol=share * scale, equal_nan=True)

    @torch.no_grad()
    def _outputs(self, seed: int) -> Tensor:
        modes = [(module, module.training) for module in self.module.modules()]
        try:
            self.module.eval()
            with restored_random_states(cuda_devices()):
                seed_everything(seed)
                outputs: Tensor = self.module(self.inputs.clone())
        finally:
            for module, training in modes:
                module.training = training
        return outputs.detach().float().cpu()
