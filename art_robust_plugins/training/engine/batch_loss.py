"""From a batch to its loss: augmentation, training defences, this process's share, and the method's loss."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from ...bridge import device_of, to_channels_last
from ...threat import Bound
from ..processes import Processes, Share
from .augmentation import Placement
from .first_step import explain_single_sample
from .gradients import split_batch
from .loss_checks import check_counted, check_scalar, uncounted_classes
from .method import TrainingMethod
from .samples import Samples


class BatchLoss:
    """The loss of a method for a batch, or for this process's share of it.

    Attributes:
        largest: the largest number of samples that passed through the network at once so far.
    """

    def __init__(self, method: TrainingMethod, processes: Processes) -> None:
        self.method, self.processes, self.options = method, processes, method.options
        self.classifier = method.classifier
        self.device = device_of(self.classifier.model)
        self.largest = 1
        self._uncounted = uncounted_classes(self.classifier.loss, self.classifier.nb_classes)
        self._fill = self._fill_value() if self.options.augmentation == "crop-flip" else 0.0

    def augment(self, x: Tensor) -> tuple[Tensor, Placement | None]:
        """The images [N, ...] changed as the options say, and how they were moved."""
        if self.options.augmentation == "none":
            return x, None
        padding = self.options.crop_padding if self.options.augmentation == "crop-flip" else 0
        placement = Placement.draw(len(x), padding, x.device, channels_first=self.classifier.channels_first)
        return placement.move(x, self._fill), placement

    def backward(self, x: Tensor, y: Tensor, samples: Samples | None = None) -> Tensor:
        """Accumulate the gradients of the batch's parts, one after the other; returns this process's loss, detached."""
        parts, done = [], 0
        for part_x, part_y in split_batch(x, y, self.options.accumulation_steps):
            rows = slice(done, done + len(part_x))
            done = rows.stop
            loss = self.compute(part_x, part_y, None if samples is None else samples.select(rows))
            loss = loss if len(part_x) == len(x) else loss * (len(part_x) / len(x))
            torch.autograd.backward(loss)
            parts.append(loss.detach())
            self.largest = max(self.largest, len(part_x))
        return sum(parts[1:], parts[0])

    def compute(self, x: Tensor, y: Tensor, samples: Samples | None = None) -> Tensor:
        """The loss of a batch; with several processes, that of this process's share times the share's weight.

        ``samples`` of the whole batch are announced to the method, where they are known.
        """
        x, y = self._apply_defences(x, y)
        share = self.processes.share_of(len(x))
        if share is not None:
            x, y = x[share.rows], y[share.rows]
        if self.options.channels_last and self.classifier.channels_first and x.dim() == 4:
            x = to_channels_last(x)
        check_counted(y, self._uncounted)
        self.announce_share(share, samples)
        for instrument in self.method.instruments:
            instrument.begin_step(y)
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.mixed_precision == "bf16"),
            self.processes.use_own_noise(),
        ):
            loss = self._training_loss(x, y)
        self.method.share = self.method.samples = None
        return loss if share is None else loss * share.weight

    def announce_share(self, share: Share | None, samples: Samples | None = None) -> None:
        """Tell the method which samples are in the next batch, and it and its instruments this process's share."""
        self.method.share, self.method.samples = share, samples
        for instrument in self.method.instruments:
            instrument.share = share

    def _apply_defences(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for defence in self.method.training_defences:
            one_hot = functional.one_hot(y, self.classifier.nb_classes).float() if y.dim() == 1 else y
            x, changed = defence.forward(x, one_hot)
            y = y if changed is one_hot else cast(Tensor, changed)
        return x, y

    def _training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        try:
            return check_scalar(self.method.training_loss(x, y), len(x), trained=True)
        except ValueError as error:
            explain_single_sample(error, "a batch of one sample")
            raise

    def _fill_value(self) -> Bound:
        """The value of padding pixels: the lower clip value, along the axes [C, H, W]; 0 where there is none."""
        low, shape = self.method.input_range[0], tuple(self.classifier.input_shape)
        if not isinstance(low, Tensor) or len(shape) != 3:
            return low if isinstance(low, float) and math.isfinite(low) else 0.0
        low = low.where(low.isfinite(), 0.0)
        low = low[0] if low.dim() == 4 else low  # clip values that have a batch axis
        return low.expand(shape) if self.classifier.channels_first else low.expand(shape).movedim(-1, 0)
