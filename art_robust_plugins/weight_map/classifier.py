"""`PyTorchWeightMapClassifier`: an ART classifier whose network has weight maps after chosen blocks.

Amer, Maul: Weight Map Layer for Noise and Adversarial Attack Robustness (arXiv 1905.00568). Status: reconstructed, the
constants are ours; see `WeightMap2d`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from ..bridge import check_classifier, copy_deeply, device_of
from ..choices import Kernel
from ..keywords import KnownKeywords
from .insert import insert_weight_maps, list_places, weight_maps
from .layer import PaddingMode, WeightMap2d, check_settings
from .trace import Place

_SETTINGS = ("kernel", "kernel_size", "alpha", "bias", "padding_mode")


def _setting(name: str) -> property:
    def value(self: PyTorchWeightMapClassifier) -> Any:
        return _find_shared(self.weight_maps, name)

    return property(value, doc=f"The maps' {name}; None where they differ in it.")


def _find_shared(layers: dict[str, WeightMap2d], name: str) -> Any:
    values = {layer.settings[name] for layer in layers.values()}
    return values.pop() if len(values) == 1 else None


class PyTorchWeightMapClassifier(PyTorchClassifier, KnownKeywords):
    """ART's ``PyTorchClassifier`` that adds weight maps to its network; any trainer and attack takes it.

    Weight maps of Amer, Maul (arXiv 1905.00568), reconstructed; see `WeightMap2d` and `insert_weight_maps`. The
    given network is changed in place, since the optimizer holds its parameters. The maps join the optimizer's first
    group, with that group's settings; if these do not suit the maps, give them a group of their own. A network that
    already has weight maps, as in ``clone_for_refitting``, keeps them; maps that the optimizer lacks join it too.

    ``clone_for_refitting`` is ART's: the clone shares the preprocessing, weights included, and its new optimizer has
    the network's parameters alone. Call `WeightMapPreprocessor.join` with the clone to train the map of its input.

    Args:
        model, loss, input_shape, nb_classes, ...: those of ``PyTorchClassifier``, in its order. See `from_classifier`
            for an existing classifier.
        where, kernel, kernel_size, alpha, bias, padding_mode: as for `insert_weight_maps`; None for its defaults, or
            for what the network's maps have.

    Attributes:
        where: names of the modules that the maps follow.
        kernel, kernel_size, alpha, bias, padding_mode: the maps' settings; each is None where they differ in it.

    Raises:
        ValueError: as `insert_weight_maps`; settings or places that are not those of the maps that the network has,
            here and in ``set_params``; inputs of another shape than ``input_shape``.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
        >>> optimizer = torch.optim.SGD(network.parameters(), 0.1)
        >>> loss = nn.CrossEntropyLoss()
        >>> classifier = PyTorchWeightMapClassifier(network, loss, (1, 8, 8), 10, optimizer, kernel="unsharp")
        >>> classifier.weight_maps
        {'1': WeightMap2d(4, 8, 8, kernel='unsharp', kernel_size=3, alpha=1, bias=False, padding_mode='zeros')}
    """

    demo: ClassVar[dict[str, Any]] = {"kernel": "unsharp"}
    """The demo's settings: on 8x8 digits the smoothing kernel would blur the digits away."""

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
        kernel: Kernel | None = None,
        kernel_size: int | None = None,
        alpha: float | None = None,
        bias: bool | None = None,
        padding_mode: PaddingMode | None = None,
    ) -> None:
        settings: dict[str, Any] = dict(zip(_SETTINGS, (kernel, kernel_size, alpha, bias, padding_mode), strict=True))
        layers = weight_maps(model)
        if layers:
            _check_same(layers, {"where": where, **settings})
        else:
            given = {name: value for name, value in settings.items() if value is not None}
            insert_weight_maps(model, input_shape, where=where, **given, inplace=True)
        if optimizer is not None:
            join_optimizer(optimizer, weight_maps(model))
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
        kernel: Kernel | None = None,
        kernel_size: int | None = None,
        alpha: float | None = None,
        bias: bool | None = None,
        padding_mode: PaddingMode | None = None,
    ) -> PyTorchWeightMapClassifier:
        """An augmented copy of a classifier, with copies of its network, optimizer and preprocessing defences.

        The given classifier is not changed; the loss is shared with it.

        Args:
            classifier: an ART ``PyTorchClassifier``.
            where: as for `insert_weight_maps`, and so are the others; None as for the class.
            kernel: ``"smoothing"`` (the default), ``"unsharp"`` or ``"identity"``.
            kernel_size: 3 (the default) or 5.
            alpha: of the unsharp kernel.
            bias: learn a bias for each place too.
            padding_mode: of the kernel, at the border of the image.

        Raises:
            TypeError: for another kind of classifier.
            ValueError: as the class; for postprocessing, or what cannot be copied.

        Example:
            >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
            >>> classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10)
            >>> list(PyTorchWeightMapClassifier.from_classifier(classifier).weight_maps)
            ['1']
        """
        check_classifier(classifier)
        # They are copied together, so that the optimizer holds the copies' parameters, a map of the input included.
        network, optimizer, defences = copy_deeply(
            "classifier: it",
            (classifier.model, classifier.optimizer, classifier.preprocessing_defences),
            "one that copy.deepcopy copies, or PyTorchWeightMapClassifier itself, which changes the network in place",
        )
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
                preprocessing_defences=defences,
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

    @property
    def where(self) -> list[str]:
        """The names of the modules that the maps follow."""
        return list(self.weight_maps)

    kernel = _setting("kernel")
    kernel_size = _setting("kernel_size")
    alpha = _setting("alpha")
    bias = _setting("bias")
    padding_mode = _setting("padding_mode")

    def set_params(self, **kwargs: Any) -> None:
        """Set parameters as ART does; the places and settings of the maps cannot be changed."""
        own = {name: kwargs.pop(name) for name in ("where", *_SETTINGS) if name in kwargs}
        _check_same(self.weight_maps, own)
        super().set_params(**kwargs)

    def _apply_preprocessing(self, x: Any, y: Any, fit: bool = False, no_grad: bool = True) -> tuple[Any, Any]:
        # ART itself does not check the size of inputs.
        if tuple(x.shape[1:]) != tuple(self.input_shape):
            expected = ", ".join(map(str, self.input_shape))
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (N, {expected}), the input_shape for which the network's "
                f"weight maps were made."
            )
        result: tuple[Any, Any] = super()._apply_preprocessing(x, y, fit=fit, no_grad=no_grad)
        return result


def _check_same(layers: dict[str, WeightMap2d], given: dict[str, Any]) -> None:
    """Refuse places and settings that differ from those of the existing maps; None is not checked."""
    given = {name: value for name, value in given.items() if value is not None}
    settings = {name: value for name, value in given.items() if name != "where"}
    check_settings(**{**next(iter(layers.values())).settings, **settings})
    for name, value in given.items():
        own = list(layers) if name == "where" else _find_shared(layers, name)
        if (list_places(value) if name == "where" else value) != own:
            raise ValueError(
                f"{name}: got {value!r} for a network that has weight maps already, expected theirs, {own!r}, or none."
            )


def join_optimizer(optimizer: torch.optim.Optimizer, layers: dict[str, WeightMap2d]) -> None:
    """Add the maps to an optimizer's first group, unless the optimizer has them.

    Existing schedulers continue to work, since no group is added.
    """
    group = optimizer.param_groups[0]
    known = {id(parameter) for other in optimizer.param_groups for parameter in other["params"]}
    for name, layer in layers.items():
        for key, parameter in layer.named_parameters(prefix=name):
            if id(parameter) not in known:
                group["params"].append(parameter)
                if "param_names" in group:
                    group["param_names"].append(key)
