"""Random crops and flips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import make_linear
from scipy.stats import chi2
from torch import Tensor, nn

from art_robust_plugins import (
    StandardTrainer,
    TrainingOptions,
)
from art_robust_plugins.training.engine.augmentation import crop_and_flip

from ..builders import watch_validations
from .runs import X, Y, resumes_exactly, train


def possible_crops(image: Tensor, padding: int, fill: float) -> list[Tensor]:
    """Each crop of a padded image [C, H, W], as it is and mirrored, cut out by hand."""
    height, width = image.shape[1:]
    padded = torch.full((len(image), height + 2 * padding, width + 2 * padding), fill)
    padded[:, padding : padding + height, padding : padding + width] = image
    places = [(top, left) for top in range(2 * padding + 1) for left in range(2 * padding + 1)]
    crops = [padded[:, top : top + height, left : left + width] for top, left in places]
    return crops + [crop.flip(2) for crop in crops]


@pytest.mark.parametrize("padding", [0, 2])
def test_each_crop_and_flip_of_an_image_is_equally_likely(padding: int) -> None:
    torch.manual_seed(0)
    images, repeats = torch.rand(5, 2, 4, 3), 1000
    found = crop_and_flip(images.repeat(repeats, 1, 1, 1), padding, 0.25)
    for index, image in enumerate(images):
        crops = torch.stack(possible_crops(image, padding, 0.25))
        equal = (found[index :: len(images), None] == crops).all(dim=(2, 3, 4))
        assert (equal.sum(dim=1) == 1).all()  # each is one of the possible crops of its own image
        counts = equal.sum(dim=0).double()
        expected = repeats / len(crops)
        assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.999, len(crops) - 1)


def test_neighbours_are_changed_independently() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 6, 6)
    crops = torch.stack(possible_crops(image[0], 1, 0.0))
    found = crop_and_flip(image.repeat(20_000, 1, 1, 1), 1)
    which = (found[:, None] == crops).all(dim=(2, 3, 4)).long().argmax(dim=1)
    pairs = torch.zeros(18, 18).index_put((which[::2], which[1::2]), torch.ones(10_000), accumulate=True)
    expected = 10_000 / 18**2
    assert ((pairs - expected) ** 2 / expected).sum() < chi2.ppf(0.999, 18**2 - 1)


class Seeing(StandardTrainer):
    """Keeps the batches that the method sees, and validates on."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.validated: list[Tensor] = []

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.seen.append((x.clone(), y.clone()))
        return super().training_loss(x, y)

    def fit(self, *arguments: Any, **settings: Any) -> None:
        with watch_validations(lambda validator: self.validated.append(validator.data[0].clone())):
            super().fit(*arguments, **settings)


@pytest.mark.parametrize("last", [False, True])
def test_the_method_sees_changed_images_with_their_labels_and_validation_the_images_themselves(last: bool) -> None:
    """Values in [-1, 1]: the padding is -1. With the channels first and last."""
    images = torch.from_numpy(2 * X[:40] - 1)
    shape = (8, 8, 1) if last else (1, 8, 8)
    data = images.movedim(1, -1).contiguous() if last else images
    seen = []
    for _ in range(2):
        model = make_linear()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        settings = {"clip_values": (-1, 1), "channels_first": not last, "optimizer": optimizer, "device_type": "cpu"}
        estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, **settings)
        options = TrainingOptions(seed=3, shuffle=False, augmentation="crop-flip", crop_padding=2)
        trainer = Seeing(estimator, options=options)
        validation = (data[:10], Y[:10])
        trainer.fit(data, Y[:40], validation, batch_size=16, nb_epochs=2, verbose=False)
        seen.append(trainer.seen)
    assert torch.equal(trainer.validated[0], data[:10])
    x = torch.cat([batch for batch, _ in seen[0]])
    x = x.movedim(-1, 1) if last else x
    assert torch.equal(torch.cat([labels for _, labels in seen[0]]), torch.from_numpy(Y[:40]).repeat(2))
    for found, image in zip(x, images.repeat(2, 1, 1, 1), strict=True):
        assert any(torch.equal(found, crop) for crop in possible_crops(image, 2, -1.0))
    assert not torch.equal(x[:40], x[40:])  # other ones in the second epoch
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one[0], other[0])  # the seed repeats them


def test_flips_alone_move_nothing() -> None:
    trainer = train(kind=Seeing, epochs=1, augmentation="flip", shuffle=False)
    x = torch.cat([batch for batch, _ in trainer.seen])
    images = torch.from_numpy(X[:100])
    kept = (x == images).flatten(1).all(dim=1)
    assert (kept | (x == images.flip(3)).flatten(1).all(dim=1)).all()
    assert 30 < int(kept.sum()) < 70


def test_padding_takes_the_lower_clip_value_of_each_pixel() -> None:
    low = np.linspace(-2, -1, 64, dtype=np.float32).reshape(1, 8, 8)
    trainer = train(
        kind=Seeing, augmentation="crop-flip", crop_padding=7, preparation={"clip_values": (low, np.ones_like(low))}
    )
    x = torch.cat([batch for batch, _ in trainer.seen])
    filled = x < 0  # the digits are not negative
    assert filled.any()
    assert torch.equal(x[filled], torch.from_numpy(low).expand_as(x)[filled])


@pytest.mark.parametrize("side", [8, 3])  # with 3 channels, 3 pixels could be taken for channels
@pytest.mark.parametrize("axes", [(3,), (1, 1, 3), (1, 1, 1, 3)])
def test_padding_takes_the_lower_clip_value_of_each_channel_where_it_is_last(side: int, axes: tuple[int, ...]) -> None:
    seen: list[Tensor] = []

    class Watching(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append(x)
            return super().training_loss(x, y)

    low = np.array([-2, -1.5, -1], dtype=np.float32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(side * side * 3, 10))
    estimator = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        (side, side, 3),
        10,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        channels_first=False,
        clip_values=(low.reshape(axes), np.ones(axes, dtype=np.float32)),
    )
    options = TrainingOptions(seed=0, augmentation="crop-flip", crop_padding=2)
    Watching(estimator, options=options).fit(
        np.zeros((60, side, side, 3), np.float32), Y[:60], nb_epochs=1, verbose=False
    )
    for channel in range(3):
        values = torch.cat(seen)[..., channel].unique()
        assert values.tolist() == [low[channel], 0]


def test_augmentation_resumes(tmp_path: Path) -> None:
    resumes_exactly(tmp_path, augmentation="crop-flip", crop_padding=1)


def test_what_is_no_image_cannot_be_cropped() -> None:
    model = nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    flat = PyTorchClassifier(model, nn.CrossEntropyLoss(), (64,), 10, optimizer=optimizer)
    with pytest.raises(ValueError, match=r"^augmentation: got 'flip' .*\(64,\)"):
        StandardTrainer(flat, options=TrainingOptions(augmentation="flip")).fit(X[:9].reshape(9, 64), Y[:9])
    with pytest.raises(ValueError, match=r"^crop_padding: got 8 "):
        train(augmentation="crop-flip", crop_padding=8)
    with pytest.raises(ValueError, match="augmentation: got 'crop',"):
        TrainingOptions(augmentation="crop")
    with pytest.raises(ValueError, match="crop_padding: got 0,"):
        TrainingOptions(crop_padding=0)
