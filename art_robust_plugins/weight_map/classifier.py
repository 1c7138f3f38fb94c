"""`PyTorchWeightMapClassifier`: an ART classifier whose network has weight maps after chosen blocks.

Amer, Maul: Weight Map Layer for Noise and Adversarial Attack Robustness (arXiv 1905.00568). Status: reconstructed, the
constants are ours; see `WeightMap2d`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from ..bridge import check_classifier, device_of
from .insert import Place, insert_weight_maps, weight_maps
from .layer import Kernel, PaddingMode, WeightMap2d, check_settings


class PyTorchWeightMapClassifier(PyTorchClassifier):
    """ART's ``PyTorchClassifier`` for a network that is given weight maps; any trainer and attack takes it.

    Weight maps of Amer, Maul (arXiv 1905.00568), reconstructed; see `WeightMap2d` and `insert_weight_maps`. The
    network that is given is changed in place, since the optimizer holds its parameters. The maps join the optimizer's
    first group, with that group's settings; give maps a group of their own where these do not suit them. A network
    that has weight maps already, as in ``clone_for_refitting``, stays as it is, whatever the other arguments say.

    Args:
        model, loss, input_shape, nb_classes, ...: those of ``PyTorchClassifier``, in its order. See `from_classifier`
            for a classifier that is there already.
        where, kernel, kernel_size, alpha, bias, padding_mode: as for `insert_weight_maps`.

    Raises:
        ValueError: as `insert_weight_maps`.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
        >>> optimizer = torch.optim.SGD(network.parameters(), 0.1)
        >>> loss = nn.CrossEntropyLoss()
        >>> classifier = PyTorchWeightMapClassifier(network, loss, (1, 8, 8), 10, optimizer, kernel="unsharp")
        >>> classifier.weight_maps
        {'1': WeightMap2d(4, 8, 8, kernel='unsharp', kernel_size=3, alpha=1, bias=False, padding_mode='zeros')}
    """

    source: ClassVar[str] = "Amer, Maul: Weight Map Layer, arXiv 1905.00568 (reconstructed, constants ours)"

    estimator_params = [  # noqa: RUF012 (ART's)
        *PyTorchClassifier.estimator_params,
        "where",
        "kernel",
        "kernel_size",
        "alpha",
        "bias",
        "padding_mode",
    ]

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        input_shape: tuple[int, ...],
        nb_classes: int,
        optimizer: torch.optim.Optimizer | None = None,
        use_amp: bool = False,
        opt_level: str = "O1",
        loss_scale: float | str | None = "dynamic",
        channels_first: bool = True,
        clip_values: Any = None,
        preprocessing_defences: Any = None,
        postprocessing_defences: Any = None,
        preprocessing: Any = (0.0, 1.0),
        device_type: str = "gpu",
        *,
        where: Place | Iterable[Place] | None = None,
        kernel: Kernel = "smoothing",
        kernel_size: int = 3,
        alpha: float = 1.0,
        bias: bool = False,
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        settings: dict[str, Any] = {
            "kernel": kernel,
            "kernel_size": kernel_size,
            "alpha": alpha,
            "bias": bias,
            "padding_mode": padding_mode,
        }
        check_settings(**settings)
        layers = weight_maps(model)
        if layers:
            where, settings = list(layers), next(iter(layers.values())).settings
        else:
            insert_weight_maps(model, input_shape, where=where, **settings, inplace=True)
            if optimizer is not None:
                join_optimizer(optimizer, weight_maps(model))
        self.where = where
        self.kernel, self.kernel_size, self.alpha, self.bias, self.padding_mode = settings.values()
        super().__init__(
            model,
            loss,
            input_shape,
            nb_classes,
            optimizer=optimizer,
            use_amp=use_amp,
            opt_level=opt_level,
            loss_scale=loss_scale,
            channels_first=channels_first,
            clip_values=clip_values,
            preprocessing_defences=preprocessing_defences,
            postprocessing_defences=postprocessing_defences,
            preprocessing=preprocessing,
            device_type=device_type,
        )

    @classmethod
    def from_classifier(
        cls,
        classifier: PyTorchClassifier,
        *,
        where: Place | Iterable[Place] | None = None,
        kernel: Kernel = "smoothing",
        kernel_size: int = 3,
        alpha: float = 1.0,
        bias: bool = False,
        padding_mode: PaddingMode = "zeros",
    ) -> PyTorchWeightMapClassifier:
        """An augmented copy of a classifier: its own network and optimizer, with the weights and settings of these.

        The given classifier stays as it is; loss and preprocessing are shared with it.

        Args:
            classifier: an ART ``PyTorchClassifier``.
            where: as for `insert_weight_maps`, and so are the others.
            kernel: ``"smoothing"``, ``"unsharp"`` or ``"identity"``.
            kernel_size: 3 or 5.
            alpha: of the unsharp kernel.
            bias: learn a bias for each place too.
            padding_mode: what the kernel finds outside the image.

        Raises:
            TypeError: for another kind of classifier.
            ValueError: as `insert_weight_maps`, and for postprocessing.

        Example:
            >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
            >>> classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10)
            >>> list(PyTorchWeightMapClassifier.from_classifier(classifier).weight_maps)
            ['1']
        """
        check_classifier(classifier)
        # Copied together, the optimizer holds the copy's parameters.
        network, optimizer = copy.deepcopy((classifier.model, classifier.optimizer))
        device = device_of(network)
        # ART moves the network to the CPU or to the current GPU: let that be where it is.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return cls(
                network,
                classifier.loss,
                classifier.input_shape,
                classifier.nb_classes,
                optimizer=optimizer,
                use_amp=classifier.use_amp,
                opt_level=classifier.opt_level,
                loss_scale=classifier.loss_scale,
                channels_first=classifier.channels_first,
                clip_values=classifier.clip_values,
                preprocessing_defences=classifier.preprocessing_defences,
                preprocessing=classifier.preprocessing,
                device_type="cpu" if device.type == "cpu" else "gpu",
                where=where,
                kernel=kernel,
                kernel_size=kernel_size,
                alpha=alpha,
                bias=bias,
                padding_mode=padding_mode,
            )

    @property
    def weight_maps(self) -> dict[str, WeightMap2d]:
        """The network's maps, by the name of the module that each one follows."""
        return weight_maps(self.model)


def join_optimizer(optimizer: torch.optim.Optimizer, layers: dict[str, WeightMap2d]) -> None:
    """Let an optimizer's first group have the maps as well, where it does not have them.

    Schedulers that are there already go on as before: no group is added.
    """
    group = optimizer.param_groups[0]
    known = {id(parameter) for other in optimizer.param_groups for parameter in other["params"]}
    for name, layer in layers.items():
        for key, parameter in layer.named_parameters(prefix=name):
            if id(parameter) not in known:
                group["params"].append(parameter)
                if "param_names" in group:
                    group["param_names"].append(key)
