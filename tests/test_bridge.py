import copy

import numpy as np
import pytest
import torch
from art.defences.postprocessor import Rounded
from art.defences.preprocessor import CutoutPyTorch, FeatureSqueezing, JpegCompression, MixupPyTorch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import nn
from torch.nn import functional

from art_robust_plugins.bridge import (
    EstimatorModule,
    augmentations,
    clip_range,
    device_of,
    image_tensor,
    input_range,
    label_tensor,
    loss_of,
    outputs_are_probabilities,
    preprocessing_operations,
    preserved,
)

SHAPE = (3, 6, 5)
N = 7
RNG = np.random.default_rng(0)


class Blur(PreprocessorPyTorch):
    """A differentiable defence: the mean of each pixel's neighbourhood, and a curve."""

    def __init__(self, apply_fit=True, apply_predict=True):
        super().__init__(device_type="cpu", apply_fit=apply_fit, apply_predict=apply_predict)

    def forward(self, x, y=None):
        return functional.avg_pool2d(torch.tanh(x), 3, 1, 1), y


class Pad(PreprocessorPyTorch):
    """A defence that makes its images square."""

    def forward(self, x, y=None):
        return functional.pad(x, (0, 1), value=0.5), y


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.movedim(-1, 1)


def network(shape=SHAPE, nb_classes=4, channels_last=False):
    torch.manual_seed(0)
    channels, height, width = shape
    return nn.Sequential(
        ChannelsLast() if channels_last else nn.Identity(),
        nn.Conv2d(channels, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(5 * height * width, nb_classes),
    )


def classifier(model=None, loss=None, shape=SHAPE, nb_classes=4, **arguments):
    arguments = {"clip_values": (0, 1), "device_type": "cpu", **arguments}
    model = network(shape, nb_classes) if model is None else model
    return PyTorchClassifier(model, loss or nn.CrossEntropyLoss(), shape, nb_classes, **arguments)


# An estimator as a module

PER_CHANNEL = (np.array([0.1, 0.2, 0.3], np.float32), np.array([0.4, 0.5, 0.6], np.float32))
SET_UPS = {
    "plain": {},
    "no preprocessing": {"preprocessing": None},
    "0 to 255": {"clip_values": (0, 255), "preprocessing": (120.0, 60.0)},
    "-1 to 1": {"clip_values": (-1, 1)},
    "scalar mean": {"preprocessing": (0.4, 0.2)},
    "mean per channel": {"preprocessing": PER_CHANNEL},
    "mean per pixel": {"preprocessing": (RNG.random(SHAPE, dtype=np.float32), np.full(SHAPE, 0.5, np.float32))},
    "defence": {"preprocessing_defences": Blur(), "preprocessing": PER_CHANNEL},
    "two defences": {"preprocessing_defences": [Blur(), Blur(apply_fit=False)], "clip_values": (0, 255)},
    "training only": {"preprocessing_defences": [CutoutPyTorch(2), MixupPyTorch(4)]},
    "defence as preprocessing": {"preprocessing": Blur()},
}


@pytest.mark.parametrize("set_up", SET_UPS)
def test_the_module_is_the_classifiers_prediction(set_up):
    estimator = classifier(**SET_UPS[set_up])
    module = EstimatorModule(estimator).eval()
    x = torch.rand(N, *SHAPE)
    low, high = estimator.clip_values
    expected = estimator.predict((x * (high - low) + low).numpy().astype(np.float32))
    torch.testing.assert_close(module(x).detach(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    direct = EstimatorModule(estimator, unit_range=False).eval()
    torch.testing.assert_close(direct(module.to_estimator(x)), module(x))
    torch.testing.assert_close(module.from_estimator(module.to_estimator(x)), x)


@pytest.mark.parametrize("preprocessing", [(0.0, 1.0), PER_CHANNEL])
def test_channels_last_are_turned(preprocessing):
    shape = (6, 5, 3)
    estimator = classifier(network(channels_last=True), shape=shape, channels_first=False, preprocessing=preprocessing)
    module = EstimatorModule(estimator).eval()
    x = torch.rand(N, *SHAPE)
    expected = estimator.predict(x.movedim(1, -1).contiguous().numpy())
    torch.testing.assert_close(module(x).detach(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    assert module.to_estimator(x).shape == (N, *shape)
    assert torch.equal(module.from_estimator(module.to_estimator(x)), x)


def test_a_defence_that_changes_the_size():
    estimator = classifier(network((3, 6, 6)), preprocessing_defences=Pad(device_type="cpu"))
    x = torch.rand(N, *SHAPE)
    torch.testing.assert_close(EstimatorModule(estimator).eval()(x).detach().numpy(), estimator.predict(x.numpy()))


def test_flat_inputs():
    model = nn.Sequential(nn.Linear(6, 3))
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), (6,), 3, clip_values=(0, 2), channels_first=False)
    x = torch.rand(N, 6)
    torch.testing.assert_close(EstimatorModule(estimator)(x), model(2 * x))


def test_preprocessing_of_fit():
    both, predict, fit = Blur(), Blur(apply_fit=False), Blur(apply_predict=False)
    estimator = classifier(preprocessing_defences=[fit, both, predict])
    assert len(preprocessing_operations(estimator, fit=False)) == 2
    assert len(preprocessing_operations(estimator, fit=True)) == 1
    assert augmentations(estimator) == [fit]
    x = torch.rand(N, *SHAPE)
    module = EstimatorModule(estimator, fit=True).eval()
    torch.testing.assert_close(module(x), estimator.model(both.forward(x)[0]))


@pytest.mark.parametrize("set_up", ["plain", "0 to 255", "mean per channel", "defence"])
def test_the_gradient_is_that_of_finite_differences(set_up):
    module = EstimatorModule(classifier(**SET_UPS[set_up])).eval().double()
    x = torch.rand(2, *SHAPE, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * module(x)).sum(), x)
    assert gradient.abs().max() > 0
    step = 1e-5
    with torch.no_grad():
        for place in [(0, 0, 0, 0), (0, 2, 3, 4), (1, 1, 5, 2), (1, 0, 2, 2)]:
            shift = torch.zeros_like(x)
            shift[place] = step
            slope = (weights * (module(x + shift) - module(x - shift))).sum() / (2 * step)
            torch.testing.assert_close(slope, gradient[place], rtol=1e-6, atol=1e-8)


def test_making_a_module_leaves_network_and_randomness_alone():
    estimator = classifier()
    estimator.model.train()
    estimator.model[4].eval()
    before, random = copy.deepcopy(estimator.model.state_dict()), torch.get_rng_state()
    EstimatorModule(estimator)
    assert torch.equal(torch.get_rng_state(), random)
    assert [layer.training for layer in estimator.model] == [True] * 4 + [False] + [True] * 2
    for name, value in estimator.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_module_trains_the_classifiers_own_network():
    estimator = classifier()
    module = EstimatorModule(estimator)
    assert module.network is estimator.model
    assert {id(parameter) for parameter in module.parameters()} == {id(p) for p in estimator.model.parameters()}


def test_the_device_is_the_networks():
    assert device_of(nn.Linear(2, 2, device="meta")).type == "meta"
    assert device_of(nn.BatchNorm2d(2, affine=False, device="meta")).type == "meta"
    assert device_of(nn.ReLU()).type == "cpu"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_network_that_was_moved_takes_its_preprocessing_along():
    estimator = classifier(preprocessing=PER_CHANNEL)
    x = torch.rand(N, *SHAPE)
    expected = EstimatorModule(estimator).eval()(x)
    estimator.model.cuda()
    module = EstimatorModule(estimator).eval()
    assert module.device.type == "cuda"
    torch.testing.assert_close(module(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)


# Classifiers that are refused


def softmax_classifier():
    return classifier(nn.Sequential(*network(), nn.Softmax(dim=1)))


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (network, TypeError, "classifier: got Sequential, expected an ART PyTorchClassifier."),
        (
            lambda: classifier(postprocessing_defences=[Rounded(2)]),
            ValueError,
            "classifier: postprocessing_defences (Rounded) change the outputs after the network, expected none.",
        ),
        (
            lambda: classifier(preprocessing_defences=FeatureSqueezing((0, 1))),
            ValueError,
            "classifier: the preprocessing FeatureSqueezing is not a PreprocessorPyTorch, so no gradient can pass "
            "through it; expected its PyTorch version.",
        ),
        (
            lambda: classifier(preprocessing_defences=[Blur(), JpegCompression((0, 1), channels_first=True)]),
            ValueError,
            "classifier: the preprocessing JpegCompression is not a PreprocessorPyTorch, so no gradient can pass "
            "through it; expected its PyTorch version.",
        ),
        (
            softmax_classifier,
            ValueError,
            "classifier: the network's outputs are softmax probabilities, expected logits; remove the softmax, the "
            "loss applies it.",
        ),
        (
            lambda: classifier(network(nb_classes=3)),
            ValueError,
            "classifier: the network's output for 2 inputs is (2, 3), expected a tensor (2, 4).",
        ),
        (
            lambda: classifier(nn.Sequential(nn.Flatten(), nn.Linear(90, 1)), nb_classes=2),
            ValueError,
            "classifier: the network's output for 2 inputs is (2, 1), expected a tensor (2, 2); a single output goes "
            "with BCEWithLogitsLoss (a logit) or BCELoss (a probability).",
        ),
        (
            lambda: classifier(clip_values=None),
            ValueError,
            "classifier: clip_values are None, expected the range of its inputs, such as (0, 1).",
        ),
    ],
)
def test_classifiers_that_are_refused(make, error, sentence):
    with pytest.raises(error) as refusal:
        EstimatorModule(make())
    assert str(refusal.value) == sentence


def test_probabilities_can_be_asked_for():
    module = EstimatorModule(softmax_classifier(), probabilities=True).eval()
    assert outputs_are_probabilities(module(torch.rand(N, *SHAPE)))


@pytest.mark.parametrize(
    ("outputs", "verdict"),
    [
        (torch.randn(5, 3).softmax(1), True),
        (torch.eye(3), True),
        (torch.randn(5, 3), False),
        (torch.randn(5, 3).log_softmax(1), False),
        (torch.tensor([[0.5, 0.5], [0.5, 0.6]]), False),
        (torch.tensor([[1.5, -0.5]]), False),
        (torch.ones(4, 1), False),
    ],
)
def test_what_counts_as_probabilities(outputs, verdict):
    assert outputs_are_probabilities(outputs) is verdict


def test_ranges():
    assert clip_range(classifier(clip_values=None)) == (None, None)
    assert clip_range(classifier(clip_values=(0, 255))) == (0.0, 255.0)
    same = classifier(clip_values=(np.zeros(SHAPE), np.ones(SHAPE)))
    assert clip_range(same) == (0.0, 1.0)
    assert input_range(same).uniform
    low, high = clip_range(classifier(clip_values=(np.zeros(SHAPE), np.linspace(0.5, 1, 90).reshape(SHAPE))))
    assert low.shape == high.shape == SHAPE
    assert high[0, 0, 0] == 0.5


# Images

IMAGES = RNG.random((N, *SHAPE), dtype=np.float32)


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
        with pytest.raises(ValueError, match=r"x: got values of type torch\.bool, expected numbers\."):
            image_tensor(x, estimator)
    else:
        assert torch.equal(image_tensor(x, estimator), torch.from_numpy(x.astype(np.float32)))


def test_read_only_and_reversed_arrays():
    x = IMAGES[::-1]
    x.flags.writeable = False
    assert np.array_equal(image_tensor(x, classifier()).numpy(), x)


def changed(value):
    x = IMAGES.copy()
    x[1, 2, 3, 4] = value
    return x


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (IMAGES[0], "x: got an array of shape (3, 6, 5), expected (N, 3, 6, 5)."),
        (IMAGES[:, :1], "x: got an array of shape (7, 1, 6, 5), expected (N, 3, 6, 5)."),
        (IMAGES.transpose(0, 2, 3, 1), "x: got an array of shape (7, 6, 5, 3), expected (N, 3, 6, 5)."),
        (np.float32(1), "x: got an array of shape (), expected (N, 3, 6, 5)."),
        (IMAGES[:0], "x: got no samples, expected at least one."),
        (changed(np.nan), "x: got NaN or infinity, expected finite numbers."),
        (changed(-np.inf), "x: got NaN or infinity, expected finite numbers."),
        (changed(1.5), f"x: got values in [{IMAGES.min():g}, 1.5], expected the classifier's clip_values [0, 1]."),
        (changed(-0.01), f"x: got values in [-0.01, {IMAGES.max():g}], expected the classifier's clip_values [0, 1]."),
        (IMAGES.astype(str), "x: got values of type <U32, expected numbers."),
        (IMAGES.astype(object), "x: got values of type object, expected numbers."),
        (IMAGES.astype(complex), "x: got values of type complex128, expected numbers."),
    ],
)
def test_images_that_are_refused(x, sentence):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        image_tensor(x, classifier())
    assert str(refusal.value) == sentence


def test_the_argument_is_named():
    with pytest.raises(ValueError, match="x_test: got no samples"):
        image_tensor(IMAGES[:0], classifier(), name="x_test")


def test_the_tolerance_is_a_share_of_the_range():
    assert image_tensor(changed(1 + 5e-7), classifier()).max() > 1
    with pytest.raises(ValueError, match="clip_values"):
        image_tensor(changed(1 + 5e-6), classifier())
    assert image_tensor(255 * changed(1 + 5e-7), classifier(clip_values=(0, 255))).max() > 255
    estimator = classifier(clip_values=(np.zeros(SHAPE), np.linspace(0.5, 1, 90).reshape(SHAPE)))
    with pytest.raises(
        ValueError, match="x: got values outside the classifier's clip_values, expected values within them"
    ):
        image_tensor(changed(1), estimator)
    assert image_tensor(IMAGES / 2, estimator).shape == IMAGES.shape
    assert image_tensor(100 * IMAGES, classifier(clip_values=None)).max() > 50


# Labels

LABELS = np.array([0, 3, 1, 2, 2, 0, 3])
ONE_HOT = np.eye(4)[LABELS]


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
        (np.eye(5)[LABELS], "y: got labels of shape (7, 5), expected class indices (N,) or one-hot rows (N, 4)."),
        (np.int64(1), "y: got labels of shape (), expected class indices (N,) or one-hot rows (N, 4)."),
        (np.zeros((7, 4, 1)), "y: got labels of shape (7, 4, 1), expected class indices (N,) or one-hot rows (N, 4)."),
        (ONE_HOT * 0.9, "y: got rows that are not one-hot, expected a single 1 in each and 0 elsewhere."),
        (np.zeros((7, 4)), "y: got rows that are not one-hot, expected a single 1 in each and 0 elsewhere."),
        (np.ones((7, 4)), "y: got rows that are not one-hot, expected a single 1 in each and 0 elsewhere."),
        (LABELS[:5], "y: got 5 labels for 7 samples, expected one for each."),
        (LABELS + 1, "y: got labels from 1 to 4, expected 0 to 3."),
        (LABELS - 1, "y: got labels from -1 to 2, expected 0 to 3."),
        (LABELS + 0.5, "y: got labels that are not whole numbers, expected class indices."),
        (np.where(LABELS > 2, np.nan, LABELS), "y: got labels that are not whole numbers, expected class indices."),
        (["a"] * 7, "y: got values of type <U1, expected numbers."),
        (None, "y: got values of type object, expected numbers."),
    ],
)
def test_labels_that_are_refused(y, sentence):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        label_tensor(y, 4, samples=7)
    assert str(refusal.value) == sentence


def test_no_labels():
    with pytest.raises(ValueError, match="y_test: got no labels, expected at least one"):
        label_tensor([], 4, name="y_test")


# The loss


@pytest.mark.parametrize(
    ("loss", "last"),
    [
        (nn.CrossEntropyLoss(), None),
        (nn.CrossEntropyLoss(label_smoothing=0.2), None),
        (nn.NLLLoss(), nn.LogSoftmax(dim=1)),
        (nn.MultiMarginLoss(), None),
        (nn.MSELoss(), None),
        (nn.BCEWithLogitsLoss(), None),
    ],
)
def test_the_loss_is_arts(loss, last):
    binary = isinstance(loss, nn.BCEWithLogitsLoss)
    model = network(nb_classes=1 if binary else 4)
    if last is not None:
        model.append(last)
    estimator = classifier(model, loss, nb_classes=2 if binary else 4)
    labels = LABELS % 2 if binary else LABELS
    expected = estimator.compute_loss(IMAGES, labels, reduction="mean")
    module = EstimatorModule(estimator, unit_range=False).eval()
    ours = loss_of(estimator, module(torch.from_numpy(IMAGES)), label_tensor(labels, estimator.nb_classes))
    assert ours.shape == ()
    assert ours.item() == pytest.approx(float(expected), rel=1e-5)


def test_the_loss_takes_mixed_labels():
    estimator, logits = classifier(), torch.randn(N, 4)
    mixed = torch.rand(N, 4).softmax(dim=1)
    expected = -(mixed * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss_of(estimator, logits, mixed), expected)


# What is restored


def spoil(model):
    model.train()
    model[2].eval()
    for parameter in model.parameters():
        parameter.requires_grad_()
    model.zero_grad(set_to_none=False)
    model(torch.rand(N, *SHAPE)).sum().backward()
    model[1].weight.grad = None


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_modes_and_gradients_are_restored(error):
    model = network().eval()
    model[4].train()
    model[1].bias.requires_grad_(False)
    gradient = torch.randn_like(model[1].weight)
    model[1].weight.grad = gradient
    expected = gradient.clone()
    try:
        with preserved(model):
            spoil(model)
            if error is not None:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        assert error is not None
    assert [layer.training for layer in model] == [False] * 4 + [True] + [False] * 2
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False] + [True] * 4
    assert model[1].weight.grad is gradient
    assert torch.equal(gradient, expected)
    assert all(parameter.grad is None for parameter in list(model.parameters())[1:])


def test_a_gradient_that_was_added_to_is_restored():
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    gradient = model.weight.grad
    with preserved(model):
        model(torch.ones(1, 2)).sum().backward()
        assert torch.equal(gradient, torch.full((1, 2), 2.0))
    assert model.weight.grad is gradient
    assert torch.equal(gradient, torch.ones(1, 2))
