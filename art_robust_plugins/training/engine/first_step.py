"""Checks of network and optimizer that find, before the first step, what would fail during training."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ...bridge import preserve
from ...checks import describe_error, quote_error
from ...randomness import restored_random_states
from ..instruments import select_modules


def check_optimizer(optimizer: Optimizer, modules: Sequence[nn.Module]) -> None:
    """Refuse an optimizer that does not step from gradients, or trains nothing of ``modules``.

    Raises:
        ValueError: for such an optimizer.
    """
    name = type(optimizer).__name__
    # A scheduler replaces the object's step by a function with another signature, so the class is inspected.
    parameters = list(inspect.signature(type(optimizer).step).parameters.values())[1:]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(each.default is each.empty and each.kind not in variable for each in parameters):
        raise ValueError(f"classifier: its optimizer {name} needs a closure, expected one that steps from gradients.")
    known = {id(parameter) for module in modules for parameter in module.parameters()}
    held = [weight for group in optimizer.param_groups for weight in group["params"] if id(weight) in known]
    if not any(weight.requires_grad for weight in held):
        found = "only weights that need no gradient" if held else "no weight of its network"
        raise ValueError(f"classifier: its optimizer {name} holds {found}, expected some to train.")


def take_first_step(optimizer: Optimizer) -> None:
    """Take a step, and explain an optimizer that fails: it may need a closure, or sparse or real gradients.

    Raises:
        ValueError: for such an optimizer.
    """
    try:
        optimizer.step()
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # libraries have no common class for it
        name, reason = type(optimizer).__name__, quote_error(error)
        if "CUDA error" in reason:  # CUDA reports late: the cause may be any earlier operation
            raise
        raise ValueError(
            f"classifier: its optimizer {name} does not step from these gradients alone ({describe_error(error)}), "
            f"expected one that takes dense gradients and whose step() needs no closure."
        ) from error


def check_outputs(outputs: object) -> Tensor:
    """Refuse outputs in training mode that are not one tensor, as they are in evaluation mode.

    Raises:
        ValueError: for a tuple, dictionary or object, as networks with auxiliary outputs give.
    """
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"classifier: the network's output in training mode is a {type(outputs).__name__}, expected a tensor of "
            f"logits; turn auxiliary outputs off, or wrap the network in a module that returns the logits alone."
        )
    return outputs


def find_frozen_layers(network: nn.Module, which: bool | Sequence[str]) -> list[nn.Module]:
    """The batch normalisations of ``network`` that stay in evaluation mode: all, none, or those that patterns name.

    Raises:
        ValueError: none is there, or a pattern fits none.
    """
    if which is False:
        return []
    layers = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    if not layers:
        raise ValueError(f"freeze_batch_norm: got {which} for a network without batch normalisation, expected False.")
    try:
        chosen = layers if which is True else select_modules(network, which, (_BatchNorm,))
    except ValueError as error:
        raise ValueError(f"freeze_batch_norm{str(error).removeprefix('layers')}") from error
    return [layers[name] for name in chosen]


def check_single_samples(
    module: nn.Module, network: nn.Module, sample: Tensor, sizes: Iterable[int], *, at: str
) -> None:
    """Refuse batches of one sample where a batch normalisation, in training mode as the network is, takes none.

    Args:
        module: the network with its preprocessing.
        network: the network; it is left as it was.
        sample: one sample [1, ...].
        sizes: numbers of samples that will pass through the network together.
        at: describes the batches in the error's sentence.

    Raises:
        ValueError: for such batches.
    """
    if 1 not in sizes or not any(isinstance(each, _BatchNorm) and each.training for each in network.modules()):
        return
    devices = [sample.device] if sample.device.type == "cuda" else []
    try:
        with torch.no_grad(), restored_random_states(devices), preserve(network), restore_buffers([network]):
            module(sample)
    except ValueError as error:
        explain_single_sample(error, at)
        raise


def explain_single_sample(error: ValueError, at: str) -> None:
    """Raise a clearer error if ``error`` is batch normalisation's complaint about a single sample."""
    if "more than 1 value per channel" in str(error):
        raise ValueError(
            f"batch_size: got {at}, which batch normalisation cannot normalise in training mode, expected at least "
            f"two; drop_last=True leaves a last batch out, and another batch_size changes it."
        ) from error


@contextmanager
def restore_buffers(modules: Sequence[nn.Module], *, only_on_error: bool = False) -> Iterator[None]:
    """A context that restores the buffers of ``modules`` at its end; with ``only_on_error``, only if it raises."""
    owners = list(chain.from_iterable(module.modules() for module in modules))
    before = [
        (owner, name, buffer, buffer.detach().clone())
        for owner in owners
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    failed = True
    try:
        yield
        failed = False
    finally:
        if failed or not only_on_error:
            with torch.no_grad():
                for owner, name, buffer, value in before:
                    if getattr(owner, name) is not buffer:  # the network has replaced the buffer
                        setattr(owner, name, buffer)
                    buffer.copy_(value)
