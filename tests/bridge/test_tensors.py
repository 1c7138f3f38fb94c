"""Images and labels as tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from art_robust_plugins.bridge import (
    image_tensor,
    label_tensor,
)

from .builders import IMAGES, LABELS, ONE_HOT, RNG, SHAPE, N, classifier


@pytest.mark.parametrize(
    "x",
    [
        IMAGES,
        IMAGES.astype(np.float64),
        IMAGES.astype(">f4"),
        np.asfortranarray(IMAGES),
        torch.from_numpy(IMAGES).double().requires_grad_(),
        IMAGES.tolist(),
    ],
)
def test_images_of_any_kind_become_one_tensor(x):
    tensor = image_tensor(x, classifier())
    assert tensor.dtype == torch.float32
    assert not tensor.requires_grad
    assert torch.equal(tensor, torch.from_numpy(IMAGES))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, bool])
def test_whole_numbers_become_floats(dtype):
    x = RNG.integers(0, 2, (N, *SHAPE)).astype(dtype)
    estimator = classifier(clip_values=(0, 255))
    if dtype is bool:
        with pytest.raises(ValueError, match=r"x: got values of type torch\.bool,"):
            image_tensor(x, estimator)
    else:
        assert torch.equal(image_tensor(x, estimator), torch.from_numpy(x.astype(np.float32)))


def test_read_only_and_reversed_arrays():
    x = IMAGES[::-1]
    x.flags.writeable = False
    assert np.array_equal(image_tensor(x, classifier()).numpy(), x)


def change_value(value):
    x = IMAGES.copy()
    x[1, 2, 3, 4] = value
    return x


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (IMAGES[0], "x: got an array of shape (3, 6, 5),"),
        (IMAGES[:, :1], "x: got an array of shape (7, 1, 6, 5),"),
        (IMAGES.transpose(0, 2, 3, 1), "x: got an array of shape (7, 6, 5, 3),"),
        (np.float32(1), "x: got an array of shape (),"),
        (IMAGES[:0], "x: got no samples,"),
        (change_value(np.nan), "x: got NaN or infinity,"),
        (change_value(-np.inf), "x: got NaN or infinity,"),
        (change_value(1.5), f"x: got values in [{IMAGES.min():g}, 1.5],"),
        (change_value(-0.01), f"x: got values in [-0.01, {IMAGES.max():g}],"),
        (IMAGES.astype(str), "x: got values of type <U32,"),
        (IMAGES.astype(object), "x: got values of type object,"),
        (IMAGES.astype(complex), "x: got values of type complex128,"),
    ],
)
def test_images_that_are_refused(x, sentence):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        image_tensor(x, classifier())
    assert str(refusal.value).startswith(sentence)


def test_the_argument_is_named():
    with pytest.raises(ValueError, match="x_test: got no samples"):
        image_tensor(IMAGES[:0], classifier(), name="x_test")


def test_the_tolerance_is_a_share_of_the_range():
    assert image_tensor(change_value(1 + 5e-7), classifier()).max() > 1
    with pytest.raises(ValueError, match="clip_values"):
        image_tensor(change_value(1 + 5e-6), classifier())
    assert image_tensor(255 * change_value(1 + 5e-7), classifier(clip_values=(0, 255))).max() > 255
    estimator = classifier(clip_values=(np.zeros(SHAPE), np.linspace(0.5, 1, 90).reshape(SHAPE)))
    with pytest.raises(ValueError, match=r"^x: got values .*clip_values"):
        image_tensor(change_value(1), estimator)
    assert image_tensor(IMAGES / 2, estimator).shape == IMAGES.shape
    assert image_tensor(100 * IMAGES, classifier(clip_values=None)).max() > 50


@pytest.mark.parametrize(
    "y",
    [
        LABELS,
        LABELS.astype(np.uint8),
        LABELS.astype(np.uint32),
        LABELS.astype(np.float32),
        LABELS.astype(">i4"),
        LABELS[:, None],
        LABELS.tolist(),
        ONE_HOT,
        ONE_HOT.astype(np.int8),
        ONE_HOT.astype(bool),
        torch.from_numpy(LABELS),
        torch.from_numpy(ONE_HOT).float(),
    ],
)
def test_labels_of_any_kind_become_indices(y):
    labels = label_tensor(y, 4, samples=7)
    assert labels.dtype == torch.int64
    assert labels.tolist() == LABELS.tolist()


def test_one_hot_labels_of_two_classes():
    assert label_tensor([[1, 0], [0, 1]], 2).tolist() == [0, 1]
    assert label_tensor([[0.0], [1.0]], 2).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("y", "sentence"),
    [
        (np.eye(5)[LABELS], "y: got labels of shape (7, 5),"),
        (np.int64(1), "y: got labels of shape (),"),
        (np.zeros((7, 4, 1)), "y: got labels of shape (7, 4, 1),"),
        (ONE_HOT * 0.9, "y: got rows that are not one-hot,"),
        (np.zeros((7, 4)), "y: got rows that are not one-hot,"),
        (np.ones((7, 4)), "y: got rows that are not one-hot,"),
        (LABELS[:5], "y: got 5 labels for 7 samples,"),
        (LABELS + 1, "y: got labels from 1 to 4,"),
        (LABELS - 1, "y: got labels from -1 to 2,"),
        (LABELS + 0.5, "y: got labels that are not whole numbers,"),
        (np.where(LABELS > 2, np.nan, LABELS), "y: got labels that are not whole numbers,"),
        (["a"] * 7, "y: got values of type <U1,"),
        (None, "y: got values of type object,"),
    ],
)
def test_labels_that_are_refused(y, sentence):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        label_tensor(y, 4, samples=7)
    assert str(refusal.value).startswith(sentence)


def test_no_labels():
    with pytest.raises(ValueError, match="y_test: got no labels,"):
        label_tensor([], 4, name="y_test")


NO_NUMBERS = {
    "complex": torch.zeros(2, dtype=torch.complex64),
    "sparse": torch.eye(2).to_sparse(),
    "meta": torch.zeros(2, device="meta"),
    "quantised": torch._make_per_tensor_quantized_tensor(torch.zeros(2, dtype=torch.int8), 0.1, 0),
    "ragged": [[1], [2, 3]],
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_holds_no_plain_numbers_is_refused(kind):
    with pytest.raises(ValueError, match=r"^targets: got "):
        label_tensor(NO_NUMBERS[kind], 4, name="targets")
    with pytest.raises(ValueError, match=r"^images: got "):
        image_tensor(NO_NUMBERS[kind], classifier(), name="images")
