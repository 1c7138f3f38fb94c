"""Transfer attacks, which follow another network's gradients and so are not misled by masked gradients."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional

from ..bridge import (
    EstimatorModule,
    as_estimator,
    check_no_conventions,
    preprocessing_modules,
    preserve,
    read_bounds,
)
from ..fingerprints import describe_value, digest
from ..keywords import explain_keywords
from ..snapshot import restored_state
from .diagnostics import find_gradient_obstacle
from .libraries import TRANSFER, Attack, Perturb, Setting
from .settings import describe_preprocessing

STEPS = 50


@explain_keywords
def transfer(
    source: PyTorchClassifier | nn.Module, name: str, *, bounds: Any = None, mean: Any = None, std: Any = None
) -> Attack:
    """Projected gradient ascent on another network's cross-entropy, judged on the one that is evaluated.

    A transfer attack knows less than one that follows the network's own gradients. Where it breaks points that those
    left, they were misled, and the report has the flag ``"transfer-beats-white-box"``. Take a network of the same task,
    best one of the same architecture trained plainly, and several where there are.

    50 steps of 2.5 eps / 50 from a uniform random start, in the threat's norm and ball (Papernot et al., arXiv
    1605.07277, name the idea; the settings are ours). The source is used in evaluation mode, and left as it was.

    Args:
        source: the other classifier, or a plain network, for inputs of the same shape and the same classes.
        name: the attack is called ``transfer-<name>``.
        bounds: of a plain network, the range of its images, as for `Evaluator`.
        mean: of a plain network, what is subtracted from images first.
        std: of a plain network, what they are divided by then.

    Returns:
        An attack for `Evaluator`, to be put beside others.

    Raises:
        TypeError: for a source that is neither.
        ValueError: when the attack is prepared, for a source of other inputs or classes, or without gradients.

    Example:
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> other = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1))
        >>> transfer(other, "plain").name
        'transfer-plain'
    """
    conventions = {"bounds": bounds, "mean": mean, "std": std}
    if not isinstance(source, nn.Module):
        check_no_conventions(source, **conventions)
        EstimatorModule(source)  # which refuses at once what cannot be followed

    def prepare(setting: Setting) -> tuple[Perturb, dict[str, Any]]:
        if isinstance(source, nn.Module):
            lowest = read_bounds(bounds, setting.input_shape).from_unit(torch.zeros(2, *setting.input_shape))
            return follow(as_estimator(source, lowest, **conventions), setting)
        return follow(source, setting)

    def follow(source: PyTorchClassifier, setting: Setting) -> tuple[Perturb, dict[str, Any]]:
        module = EstimatorModule(source)
        shape = tuple(module.from_estimator(torch.zeros(1, *source.input_shape)).shape[1:])
        if (source.nb_classes, shape) != (setting.classes, setting.input_shape):
            raise ValueError(
                f"attacks: the source of {TRANSFER + name!r} takes inputs {shape} of {source.nb_classes} classes, "
                f"expected {setting.input_shape} and {setting.classes}."
            )
        sources = nn.ModuleList([source.model, *preprocessing_modules(source)])
        with preserve(sources), restored_state(sources):
            source.model.eval()
            missing = find_gradient_obstacle(module, torch.zeros(2, *shape, device=module.device))
        if missing is not None:
            raise ValueError(
                f"attacks: the source of {TRANSFER + name!r} cannot be followed ({missing}), expected a network with "
                f"gradients."
            )
        threat = setting.threat

        def perturb(x: Tensor, y: Tensor) -> Tensor:
            def loss(images: Tensor) -> Tensor:
                logits = module(images.to(module.device))
                return functional.cross_entropy(logits, y.to(module.device), reduction="sum").to(images.device)

            with preserve(sources), restored_state(sources):
                source.model.eval()
                start = threat.random_start(x, 0.0, 1.0)
                return threat.ascend(loss, x, start, steps=STEPS, step_size=2.5 * threat.eps / STEPS, low=0.0, high=1.0)

        weights = hashlib.sha256(str(describe_preprocessing(source)).encode())
        for value in sources.state_dict().values():
            if isinstance(value, Tensor) and not value.is_quantized:
                weights.update(value.detach().cpu().double().numpy().tobytes())
            else:
                weights.update(digest(*describe_value(value)).encode())
        return perturb, {"source": weights.hexdigest()[:12], "steps": STEPS, "step_size": 2.5 * threat.eps / STEPS}

    return Attack(f"{TRANSFER}{name}", f"{STEPS} gradient steps on another network, {name}", prepare, gradients=False)
