"""Trained networks as files for use without this package and without ART: torch.export, ONNX, TorchScript.

A file holds the network with ART's preprocessing before it, on the CPU and in evaluation mode. It takes a batch of
inputs as the estimator does, in its clip_values and its order of axes, and returns logits::

    network = torch.export.load("network.pt2").module()             # torch-export
    session = onnxruntime.InferenceSession("network.onnx")          # onnx: input "x", output "logits"
    network = torch.jit.load("network.pt")                          # torchscript
"""

from __future__ import annotations

import importlib.util
import io
import re
import sys
import warnings
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .bridge import (
    EstimatorModule,
    check_classifier,
    clip_range,
    copy_deeply,
    copy_network,
    image_tensor,
    predict_outputs,
    preserve,
    standardisation_of,
)
from .checks import check_choice, check_path, is_integer, plain_number
from .choices import Format
from .files import write_atomically
from .keywords import explain_keywords
from .lipschitz.preprocessing import Standardisation
from .locks import check_output_file

SUFFIXES: dict[Format, str] = {"torch-export": ".pt2", "onnx": ".onnx", "torchscript": ".pt"}
"""The suffix of a file of each format."""

_OF_TORCH = r"torch\.(?!jit|_tensor$|overrides$)"  # torch's modules by name, except those that pass a user's call on

TOLERANCE = 1e-3
"""The largest difference of a file's logits from the estimator's, as a share of the largest: TF32 may round so much."""


@explain_keywords
def export_classifier(
    classifier: PyTorchClassifier,
    path: str | Path,
    x: Any,
    *,
    format: Format = "torch-export",
    batch: int | None = None,
) -> float:
    """Write a classifier's network, with its preprocessing, to a file that plain PyTorch or ONNX Runtime runs.

    The file is loaded again, and its logits are compared with the estimator's before it takes its place: for ``x``, for
    random inputs, and for constant ones, in batches of several sizes. A trace of TorchScript that torch warns of, such
    as one with a branch on its data, is refused.

    Args:
        classifier: an ART ``PyTorchClassifier``; it stays as it is.
        path: the file; its name ends in ``.pt2``, ``.onnx`` or ``.pt``, as the format says.
        x: inputs to compare the outputs on, [N, *input_shape] in the classifier's ``clip_values``, two at least.
        format: ``"torch-export"``, ``"onnx"`` (needs the extra ``export``), or ``"torchscript"``, a trace.
        batch: the batch size that the file takes; None for any.

    Returns:
        The largest difference between the file's logits and the estimator's.

    Raises:
        TypeError: for another kind of classifier.
        ValueError: inputs that do not fit, an unknown format or another suffix, a network that cannot be exported
            (TorchScript, or one whose trace is no more than that of one batch), or one whose file gives other outputs:
            nothing is written then.
        ImportError: what writes ONNX is not installed.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 2, 2), 3, clip_values=(0, 255))
        >>> path = Path(tempfile.mkdtemp()) / "network.pt2"
        >>> export_classifier(classifier, path, 255 * torch.rand(8, 1, 2, 2)) < 1e-3
        True
        >>> torch.export.load(path).module()(torch.zeros(5, 1, 2, 2)).shape
        torch.Size([5, 3])
    """
    check_classifier(classifier)
    check_choice("format", format, get_args(Format))
    path = check_path("path", path)
    check_output_file("path", path)
    if path.suffix != SUFFIXES[format]:
        fitting = next((name for name, suffix in SUFFIXES.items() if suffix == path.suffix), None)
        advice = "" if fitting is None else f", or the format {fitting}"
        raise ValueError(
            f"path: got {path.name!r}, expected a name that ends in {SUFFIXES[format]} for {format}{advice}."
        )
    if batch is not None and (not is_integer(batch) or batch < 1):
        raise ValueError(f"batch: got {batch!r}, expected a positive whole number; without it, any.")
    batch = plain_number(batch)
    if batch is not None and format == "torchscript":
        raise ValueError(f"batch: got {batch} for torchscript, whose files take any batch, expected it to be left out.")
    if format == "onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(f'{missing[0]} is not installed, expected it through: pip install ".[export]".')
    scripted = next((m for m in classifier.model.modules() if isinstance(m, torch.jit.ScriptModule)), None)
    if scripted is not None:
        raise ValueError(
            f"classifier: got a network with a {type(scripted).__name__}, TorchScript already, expected plain modules; "
            f"torch.jit.save writes TorchScript itself."
        )
    network = copy_with_preprocessing(classifier)
    images = image_tensor(x, classifier).cpu()
    if len(images) < 2:
        raise ValueError("x: got one input, expected at least two to compare outputs on.")
    batches = _make_batches(images, classifier, batch)
    with preserve(classifier.model):  # ART leaves it in evaluation mode
        expected = [predict_outputs(classifier, each.clone()).numpy() for each in batches]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            content = _serialise(network, batches[0].clone(), format, batch)
        except Exception as error:  # whatever of the network's code cannot be traced
            reason = _find_cause(error)
            advice = "" if batch is not None or format == "torchscript" else ", or a fixed batch"
            raise ValueError(
                f"classifier: its network cannot be exported as {format} ({reason}), "
                f"expected one without control flow that depends on the data{advice}."
            ) from error
    differences: list[float] = []

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = [_run_file(temporary, each, format) for each in batches]
        scale = max(float(np.abs(logits).max()) for logits in expected)
        differences.extend(_measure_difference(*pair, scale) for pair in zip(outputs, expected, strict=True))

    write_atomically(path, write)
    return max(differences)


def _make_batches(images: Tensor, classifier: PyTorchClassifier, batch: int | None) -> list[Tensor]:
    """Inputs to compare on: the caller's, random ones, and constant ones, which take the rarer branches of a network.

    A file for any batch is tried with several sizes; one for a fixed batch with as many inputs as it takes.
    """
    generator = torch.Generator().manual_seed(0)
    low, high = clip_range(classifier)
    bottom = images.amin() if low is None else torch.as_tensor(low).cpu()
    top = images.amax() if high is None else torch.as_tensor(high).cpu()
    rows = max(len(images), 7)
    random = bottom + (top - bottom) * torch.rand(rows, *images.shape[1:], generator=generator, dtype=torch.float32)
    # Each input on a scale of its own: dark and light ones, smooth and rough ones.
    level = torch.linspace(0, 1, rows, dtype=torch.float32).view(-1, *[1] * (images.dim() - 1))
    flat = bottom + (top - bottom) * level.expand_as(random)
    mixed = (0.5 * (random + flat)).float()
    every = [images, random.float(), flat.float(), mixed]
    if batch is not None:
        return [each[torch.arange(batch) % len(each)] for each in every]
    return [*every, images[:1], random[:1].float(), flat[:1].float(), flat[-1:].float(), random[:3].float()]


def _find_cause(error: BaseException) -> str:
    """An error of torch in one sentence: the first error of a chain, which has the reason."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    lines = [line.strip() for line in str(error).strip().split("\n")]
    first = next((line for line in lines if line and not line.startswith(("#", "[", "Failed to export"))), "")
    return (first if first.startswith("TracerWarning: ") else f"{type(error).__name__}: {first}")[:300]


def copy_with_preprocessing(classifier: PyTorchClassifier) -> nn.Module:
    """Copy a classifier's network with the preprocessing of ``predict`` before it, on the CPU, in evaluation mode.

    Its inputs are the estimator's, its outputs logits; means, deviations and maps are its buffers.

    Raises:
        TypeError: for another kind of classifier.
        ValueError: for preprocessing that is not torch, any postprocessing, outputs that are not [N, nb_classes], and
            what cannot be copied.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 2, 2), 3, preprocessing=(0.5, 0.25))
        >>> [type(step).__name__ for step in copy_with_preprocessing(classifier)]
        ['Standardisation', 'Sequential']
    """
    EstimatorModule(classifier, unit_range=False, probabilities=True)  # which refuses what has no gradient
    steps: list[nn.Module] = []
    for operation in classifier.preprocessing_operations:
        if not operation.apply_predict:
            continue
        if type(operation) is StandardisationMeanStdPyTorch:
            mean, std = standardisation_of(operation, classifier)
            if bool((mean != 0).any() or (std != 1).any()):
                steps.append(Standardisation(mean.float(), std.float()))
        else:
            subject = f"classifier: its {type(operation).__name__}"
            steps.append(_Defence(copy_deeply(subject, operation, "a defence that copy.deepcopy copies")))
    network = nn.Sequential(*steps, copy_network(classifier.model)).cpu().eval()
    return network.requires_grad_(False)


class _Defence(nn.Module):
    """A preprocessing defence of ART, whose modules become parts of the network."""

    def __init__(self, defence: Any) -> None:
        super().__init__()
        self.defence = defence
        self.parts = nn.ModuleList(value for value in vars(defence).values() if isinstance(value, nn.Module))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.defence.forward(x, None)[0]
        return result


def _serialise(network: nn.Module, x: Tensor, format: Format, batch: int | None) -> bytes:
    """The file's content, in memory: of a full disk torch says the same as of a network that it cannot write."""
    content = io.BytesIO()
    if format == "torchscript":
        torch.jit.save(_trace(network, x), content)
        return content.getvalue()
    free = ({0: torch.export.Dim("batch", min=1)},) if batch is None else None
    program = torch.export.export(network, (x,), dynamic_shapes=free, strict=False)  # the default from torch 2.7 on
    if format == "torch-export":
        torch.export.save(program, content)
        return content.getvalue()
    written = torch.onnx.export(program, (x,), dynamo=True, input_names=["x"], output_names=["logits"], verbose=False)
    if written is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    serialised: bytes = written.model_proto.SerializeToString()
    return serialised


def _trace(network: nn.Module, x: Tensor) -> Any:
    """The network in TorchScript.

    A trace keeps as constants the branches, numbers and lengths that a forward reads from the data, and would give
    wrong results for other data. Torch warns of them. The warnings are recorded, not raised, because the tracer ignores
    a warning that is raised as an error. A forward that silences warnings is found by the conversions themselves. Torch
    ignores warnings from its own modules, which only ask for sizes; they are ignored here too.
    """
    with warnings.catch_warnings(record=True) as warned, _Conversions() as conversions:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=_OF_TORCH)  # type: ignore[attr-defined]
        # The tracer's own check compares with the network that it traces; ours is with the estimator.
        traced = torch.jit.trace(network, (x,), check_trace=False)  # type: ignore[no-untyped-call]
    for warning in warned:
        if issubclass(warning.category, torch.jit.TracerWarning):  # type: ignore[attr-defined]
            raise ValueError(f"TracerWarning: {warning.message}")
    if conversions.found:
        raise ValueError(f"TracerWarning: Tensor.{conversions.found[0]} makes a constant of what depends on the data")
    return traced


class _Conversions(TorchFunctionMode):
    """Records each conversion of a tensor to a Python value, outside torch's own modules."""

    NAMES = frozenset(
        f"__{name}__" for name in ("array", "bool", "complex", "contains", "float", "index", "int", "iter", "len")
    ) | {"item", "numpy", "tolist"}

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in self.NAMES and getattr(Tensor, name, None) is function:
            caller = sys._getframe(1)
            while caller.f_back is not None and caller.f_globals.get("__name__") in (
                "torch._tensor",
                "torch.overrides",
            ):
                caller = caller.f_back
            if not re.match(_OF_TORCH, caller.f_globals.get("__name__", "")):
                self.found.append(name)
        return function(*args, **(kwargs or {}))


def _run_file(path: Path, x: Tensor, format: Format) -> NDArray[Any]:
    """The outputs of a file that was just written, which may fail for this size of batch."""
    try:
        return _compute_outputs(path, x.clone(), format)
    except OSError:
        raise
    except Exception as error:  # whatever the runtime says
        raise ValueError(
            f"classifier: the file of its network fails for {len(x)} inputs ({_find_cause(error)}), expected one "
            f"that takes them; nothing was written."
        ) from error


def _compute_outputs(path: Path, x: Tensor, format: Format) -> NDArray[Any]:
    """The outputs [N, C] of a file that was just written."""
    if format == "onnx":
        from onnx.reference import ReferenceEvaluator

        (outputs,) = ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})
        return np.asarray(outputs)
    network: Any = torch.export.load(path).module() if format == "torch-export" else torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        logits: Tensor = network(x)
    return logits.float().numpy()  # NumPy has no bfloat16


def _measure_difference(found: NDArray[Any], wanted: NDArray[Any], scale: float) -> float:
    """The largest difference between the logits of a file and the estimator's, whose largest logit is ``scale``.

    Raises:
        ValueError: they differ by more than `TOLERANCE`.
    """
    difference = float(np.abs(found.astype(np.float64) - wanted).max()) if found.shape == wanted.shape else np.inf
    if not difference <= TOLERANCE * scale:
        raise ValueError(
            f"classifier: the file of its network gives {found.shape} logits that are up to {difference:.2g} from the "
            f"estimator's {wanted.shape}, expected the same; nothing was written."
        )
    return difference
