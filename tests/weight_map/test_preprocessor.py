"""The map on the input: ART's gradients through it, how it is learned, and everything that uses an estimator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.defences.trainer import Trainer
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import Tensor, nn

from art_robust_plugins import (
    Evaluator,
    LipschitzMarginTrainer,
    PyTorchLipschitzCertifier,
    StandardTrainer,
    ThreatModel,
    TrainingOptions,
    WeightMap2d,
    WeightMapPreprocessor,
    available_methods,
    create,
    load_classifier,
    save_classifier,
)
from art_robust_plugins.bridge import EstimatorModule
from art_robust_plugins.data import Dataset
from art_robust_plugins.evaluation.evaluator import preprocessing
from art_robust_plugins.lipschitz import analysis
from art_robust_plugins.registry import parameters_of

from .builders import SHAPE, classifier, network

X = np.random.default_rng(0).random((5, *SHAPE), dtype=np.float32)
Y = np.arange(5)


def preprocessor(**options) -> WeightMapPreprocessor:
    made = WeightMapPreprocessor(SHAPE, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.layer.map.copy_(torch.rand(made.layer.map.shape, generator=generator) + 0.5)
    return made


def defend(defences: object, *, dropout: bool = False) -> PyTorchClassifier:
    model = network()
    if dropout:
        model = nn.Sequential(nn.BatchNorm2d(1), model, nn.Dropout(0.1))
    return classifier(model, preprocessing_defences=defences, preprocessing=(0.1, 0.5))


def pipeline(estimator: PyTorchClassifier, made: WeightMapPreprocessor, x: Tensor) -> Tensor:
    """What the estimator should compute, in float64."""
    layer, network = made.layer, estimator.model
    single = layer.map.dtype
    layer.double(), network.double()
    try:
        x = layer(x)
        if made.clip_values is not None:
            x = x.clamp(*made.clip_values)
        return network((x - 0.1) / 0.5)
    finally:
        layer.to(single), network.to(single)


@pytest.mark.parametrize("options", [{}, {"kernel": "unsharp"}, {"kernel": "unsharp", "clip_values": (0.0, 1.0)}])
def test_gradients_of_art_are_those_of_finite_differences(options: dict) -> None:
    made = preprocessor(**options)
    estimator = defend(made)
    assert isinstance(made, PreprocessorPyTorch)
    estimator.model.eval()
    x = torch.from_numpy(X).double()
    np.testing.assert_allclose(estimator.predict(X), pipeline(estimator, made, x).detach().numpy(), atol=1e-5)
    gradient = estimator.loss_gradient(X, np.eye(10, dtype=np.float32)[:5])

    def loss(values: Tensor) -> float:
        # ART's gradient is that of the mean over the batch.
        return float(nn.functional.cross_entropy(pipeline(estimator, made, values), torch.arange(5)))

    step = 1e-6
    with torch.no_grad():
        for sample, row, column in [(0, 0, 0), (1, 3, 4), (2, 7, 7), (3, 0, 5), (4, 6, 1)]:
            change = torch.zeros_like(x)
            change[sample, 0, row, column] = step
            slope = (loss(x + change) - loss(x - change)) / (2 * step)
            assert gradient[sample, 0, row, column] == pytest.approx(slope, rel=1e-3, abs=1e-6)
    assert made.layer.map.grad is None  # attacks leave nothing in the map
    estimate = made.estimate_gradient(X, np.ones_like(X))
    inputs = torch.from_numpy(X).requires_grad_()
    (expected,) = torch.autograd.grad(made.forward(inputs)[0].sum(), inputs)
    np.testing.assert_allclose(estimate, expected.numpy())


def test_the_output_is_the_layers_in_any_layout() -> None:
    made = preprocessor(kernel="unsharp", clip_values=(0, 1))
    output, labels = made(X, Y)
    assert labels is Y or np.array_equal(labels, Y)
    expected = made.layer(torch.from_numpy(X)).clamp(0, 1)
    np.testing.assert_array_equal(output, expected.detach().numpy())
    assert 0 <= output.min() <= output.max() <= 1
    last = WeightMapPreprocessor((8, 8, 1), kernel="unsharp", clip_values=(0, 1), channels_first=False)
    last.layer.load_state_dict(made.layer.state_dict())
    np.testing.assert_array_equal(last(np.moveaxis(X, 1, -1))[0], np.moveaxis(output, 1, -1))
    whole = made(np.ones((2, *SHAPE), dtype=np.uint8))[0]
    np.testing.assert_allclose(whole, made(np.ones((2, *SHAPE), dtype=np.float32))[0])


def test_fit_learns_the_map_and_nothing_else(digits: Dataset) -> None:
    made = WeightMapPreprocessor(SHAPE)
    estimator = defend(made, dropout=True)
    x, y = digits.x_train[:512], digits.y_train[:512]
    StandardTrainer(estimator, options=TrainingOptions(seed=0)).fit(x, y, nb_epochs=2, verbose=False)
    assert made.layer.map.eq(1).all()
    estimator.model.train()
    state = {name: tensor.clone() for name, tensor in estimator.model.state_dict().items()}
    gradients = [parameter.grad for parameter in estimator.model.parameters()]
    before = estimator.compute_loss(x, y).mean()
    random_state = torch.get_rng_state()
    estimator.model.train()
    made.fit(x, y, classifier=estimator, nb_epochs=5)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert estimator.model.training
    assert all(torch.equal(estimator.model.state_dict()[name], tensor) for name, tensor in state.items())
    assert all(p.grad is g and p.requires_grad for p, g in zip(estimator.model.parameters(), gradients, strict=True))
    assert not made.layer.map.eq(1).all()
    assert not made.layer.map.requires_grad
    assert estimator.compute_loss(x, y).mean() < before
    first = made.layer.map.clone()
    made.layer.reset_parameters()
    made.fit(x, y, classifier=estimator, nb_epochs=5)
    assert torch.equal(made.layer.map, first)


def test_joint_fit_learns_both(digits: Dataset) -> None:
    made = WeightMapPreprocessor(SHAPE, bias=True)
    estimator = defend(made)
    before = {name: tensor.clone() for name, tensor in estimator.model.state_dict().items()}
    made.fit(digits.x_train[:256], digits.y_train[:256], classifier=estimator, joint=True, nb_epochs=1)
    assert not made.layer.map.eq(1).all()
    assert not made.layer.bias.eq(0).all()
    assert all(not torch.equal(estimator.model.state_dict()[name], tensor) for name, tensor in before.items())


class Failing(nn.CrossEntropyLoss):
    """Infinite from one call on."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.left -= 1
        return super().forward(logits, labels) * (1 if self.left >= 0 else float("inf"))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("calls", [6, 7, 8])
def test_a_loss_that_is_not_finite_leaves_the_last_good_epoch(joint: bool, calls: int, digits: Dataset) -> None:
    made, twin = WeightMapPreprocessor(SHAPE), WeightMapPreprocessor(SHAPE)
    estimator, other = defend(made), defend(twin)
    x, y = digits.x_train[:128], digits.y_train[:128]
    settings = {"joint": joint, "batch_size": 64}
    twin.fit(x, y, classifier=other, nb_epochs=2, **settings)
    estimator._loss = Failing(calls)  # an epoch has two batches, and a check after its last step
    with pytest.raises(FloatingPointError, match=r"loss .*inf .*epoch 3"):
        made.fit(x, y, classifier=estimator, nb_epochs=3, **settings)
    for after, expected in ((made.layer, twin.layer), (estimator.model, other.model)):
        for name, tensor in expected.state_dict().items():
            assert torch.equal(after.state_dict()[name], tensor), name
    assert torch.equal(made.layer.map, twin.layer.map)
    assert not estimator.model.training or not joint


def test_weights_that_are_not_finite_are_refused_too(digits: Dataset) -> None:
    made = WeightMapPreprocessor(SHAPE)
    estimator = defend(made)
    estimator.optimizer.param_groups[0]["lr"] = 1e38
    with pytest.raises(FloatingPointError, match="in epoch 1"):
        made.fit(digits.x_train[:64], digits.y_train[:64], classifier=estimator, joint=True, nb_epochs=1)
    assert made.layer.map.eq(1).all()
    assert all(parameter.isfinite().all() for parameter in estimator.model.parameters())


@pytest.mark.parametrize("name", sorted(n for n, kind in available_methods().items() if issubclass(kind, Trainer)))
@pytest.mark.parametrize("joint", [False, True])
def test_trainers_take_the_map_as_it_is_or_train_it_too(name: str, joint: bool, digits: Dataset) -> None:
    made = preprocessor()
    estimator = defend(made)
    if joint:
        made.join(estimator)
        made.join(estimator)
    kind = available_methods()[name]
    parameters = dict(getattr(kind, "demo", {}))
    if "threat" in parameters_of(kind):
        parameters["threat"] = ThreatModel("Linf", 0.1)
    before = made.layer.map.detach().clone()
    trainer = create(name, estimator, options=TrainingOptions(seed=0), **parameters)
    trainer.fit(digits.x_train[:128], digits.y_train[:128], nb_epochs=1, batch_size=64, verbose=False)
    assert torch.equal(made.layer.map, before) != joint
    assert (made.layer.map.grad is not None) == joint


@pytest.mark.parametrize("keep_best", [False, True])
def test_checkpoints_hold_the_map(keep_best: bool, digits: Dataset, tmp_path) -> None:
    x, y = digits.x_train[:64], digits.y_train[:64]

    def run(epochs: int, folder: str, resume: bool = False) -> tuple[Tensor, list]:
        made = WeightMapPreprocessor(SHAPE)
        estimator = defend(made)
        made.join(estimator)
        scheduler = torch.optim.lr_scheduler.StepLR(estimator.optimizer, 1, 0.5)
        options = TrainingOptions(seed=0, checkpoint_dir=tmp_path / folder, resume=resume, keep_best=keep_best)
        trainer = StandardTrainer(estimator, options=options)
        validation = (digits.x_test[:50], digits.y_test[:50])
        trainer.fit(x, y, validation, batch_size=32, nb_epochs=epochs, scheduler=scheduler, verbose=False)
        accuracy = (estimator.predict(validation[0]).argmax(axis=1) == validation[1]).mean()
        return made.layer.map.detach().clone(), [r["validation_accuracy"] for r in trainer.history] + [accuracy]

    whole, record = run(4, "whole")
    run(2, "parts")
    resumed, again = run(4, "parts", resume=True)
    assert torch.equal(whole, resumed)
    assert record == again
    if keep_best:
        assert record[-1] == pytest.approx(max(record[:-1]))
    options = TrainingOptions(seed=0, checkpoint_dir=tmp_path / "whole", resume=True, keep_best=keep_best)
    for other in (WeightMapPreprocessor(SHAPE, kernel="unsharp"), None):
        trainer = StandardTrainer(defend(other), options=options)
        scheduler = torch.optim.lr_scheduler.StepLR(trainer.classifier.optimizer, 1, 0.5)
        with pytest.raises(ValueError, match=r"^resume: .*preprocessing .*WeightMap2d"):
            trainer.fit(x, y, (x, y), batch_size=32, nb_epochs=5, scheduler=scheduler, verbose=False)


def test_saved_and_loaded(tmp_path) -> None:
    made = preprocessor(kernel="unsharp", clip_values=(0.0, 1.0), bias=True)
    estimator = defend(made)
    made.join(estimator)
    estimator.fit(X, Y, nb_epochs=1, batch_size=5)
    save_classifier(estimator, tmp_path / "joined")
    loaded = load_classifier(tmp_path / "joined")
    (back,) = loaded.preprocessing_defences
    assert back.settings == made.settings
    assert back.weights_digest == made.weights_digest
    assert np.array_equal(loaded.predict(X), estimator.predict(X))
    assert loaded.optimizer.param_groups[0]["params"][-1] is back.layer.bias
    assert back.layer.map.requires_grad
    frozen = defend([preprocessor()])
    save_classifier(frozen, tmp_path / "frozen")
    loaded = load_classifier(tmp_path / "frozen")
    assert not loaded.preprocessing_defences[0].layer.map.requires_grad
    assert np.array_equal(loaded.predict(X), frozen.predict(X))


def test_art_trains_predicts_and_attacks_with_it() -> None:
    made = preprocessor()
    estimator = defend(made)
    estimator.fit(X, Y, nb_epochs=2, batch_size=5)
    attack = ProjectedGradientDescent(estimator, norm=np.inf, eps=0.1, eps_step=0.05, max_iter=3, verbose=False)
    adversarial = attack.generate(X, np.eye(10, dtype=np.float32)[:5])
    assert np.abs(adversarial - X).max() <= 0.1 + 1e-6
    assert estimator.compute_loss(adversarial, Y).mean() > estimator.compute_loss(X, Y).mean()
    clone = estimator.clone_for_refitting()
    assert clone.preprocessing_defences[0] is made  # and its optimizer has the map once it joins again
    made.join(clone)
    assert clone.optimizer.param_groups[0]["params"][-1] is made.layer.map


def test_the_evaluator_takes_it_and_tells_maps_apart(digits: Dataset, tmp_path) -> None:
    made = preprocessor()
    estimator = defend(made)
    StandardTrainer(estimator, options=TrainingOptions(seed=0)).fit(
        digits.x_train[:512], digits.y_train[:512], nb_epochs=3, verbose=False
    )
    x, y = digits.x_test[:20], digits.y_test[:20]

    def evaluate() -> float:
        evaluator = Evaluator(
            estimator, ThreatModel("Linf", 0.1), attacks="pgd-20", state_dir=tmp_path / "state", verbose=False
        )
        return evaluator.evaluate(x, y).robust_accuracy

    pytest.importorskip("torchattacks")
    accuracy = evaluate()
    assert accuracy == evaluate()
    assert any(made.weights_digest in step for step in preprocessing(estimator))
    with torch.no_grad():
        made.layer.map.mul_(1.1)
    with pytest.raises(ValueError, match="another preprocessing"):
        evaluate()


def test_bad_input() -> None:
    made = preprocessor()
    with pytest.raises(ValueError, match=r"x: got shape \(1, 1, 9, 8\),"):
        made.forward(torch.rand(1, 1, 9, 8))
    with pytest.raises(ValueError, match=r"input_shape: got \(8, 8\),"):
        WeightMapPreprocessor((8, 8))
    for shape in (8, None, (1, 8.7, 8), (1, 0, 8)):
        with pytest.raises(ValueError, match=r"input_shape: got"):
            WeightMapPreprocessor(shape)
    assert WeightMapPreprocessor(np.array(SHAPE)).input_shape == SHAPE
    for values in ((1, 0), (1, 0, 3), 1, ("a", "b"), (0, np.inf)):
        with pytest.raises(ValueError, match=r"clip_values: got"):
            WeightMapPreprocessor(SHAPE, clip_values=values)
    for name, value in {"kernel": "unsharp", "weights_digest": "", "clip_values": (0, 2)}.items():
        with pytest.raises(ValueError, match=f"^{name}: got "):
            made.set_params(**{name: value})
    assert (made.kernel, made.kernel_size, made.alpha, made.bias, made.padding_mode) == tuple(
        made.layer.settings.values()
    )
    with pytest.raises(ValueError, match="kernel: got 'blur'"):
        WeightMapPreprocessor(SHAPE, kernel="blur")
    with pytest.raises(TypeError, match="classifier: got NoneType"):
        made.fit(X, Y)
    with pytest.raises(ValueError, match="y: got None"):
        made.fit(X, classifier=defend(made))
    with pytest.raises(ValueError, match="preprocessing_defences"):
        made.fit(X, Y, classifier=defend(preprocessor()))
    with pytest.raises(ValueError, match="nb_epochs: got 0"):
        made.fit(X, Y, classifier=defend(made), nb_epochs=0)
    for rate in (0, "a", 1e30, True, float("nan")):
        with pytest.raises(ValueError, match=r"learning_rate: got"):
            made.fit(X, Y, classifier=defend(made), learning_rate=rate)
    with pytest.raises(ValueError, match=r"learning_rate: got 0\.1 with joint=True"):
        made.fit(X, Y, classifier=defend(made), learning_rate=0.1, joint=True)
    with pytest.raises(ValueError, match="labels from 0 to 99"):
        made.fit(X, [0, 1, 2, 3, 99], classifier=defend(made))
    without = defend(made)
    without.set_params(optimizer=None)
    without._optimizer = None
    with pytest.raises(ValueError, match="it has no optimizer"):
        made.join(without)


def linear(defences: object, **options) -> PyTorchClassifier:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64, bias=False), nn.Flatten())
    nn.init.eye_(network[1].weight)
    arguments = {"clip_values": (0, 1), "preprocessing": None, "preprocessing_defences": defences, **options}
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), SHAPE, 64, **arguments)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("options", [{}, {"kernel": "unsharp", "alpha": 0.7}, {"kernel": "identity"}])
def test_its_certificate_is_that_of_the_dense_operator(options: dict, mode: str) -> None:
    made = preprocessor(**options, padding_mode=mode)
    basis = torch.eye(64, dtype=torch.float64).view(64, *SHAPE)
    kernel = WeightMap2d(*SHAPE, **options, padding_mode=mode)
    plain, whole = (torch.linalg.svdvals(module(basis).flatten(1).detach())[0] for module in (kernel, made.layer))
    exact = float(plain) * float(made.layer.map.max())
    report = PyTorchLipschitzCertifier.from_classifier(linear(made)).lipschitz_report()
    assert float(whole) <= report.lipschitz
    assert exact <= report.lipschitz <= exact * (1 + 1e-6)
    # The rows show what it is made of, the largest weight too.
    assert np.prod([row["norm"] for row in report.rows]) == pytest.approx(report.lipschitz, rel=1e-6)
    assert report.rows[0]["kind"] == "Scale"
    assert report.rows[0]["norm"] == pytest.approx(float(made.layer.map.max()), rel=1e-6)
    assert report.rows[0]["module"] == "preprocessing_0.layer"


@pytest.mark.parametrize(
    "defences",
    [
        lambda made: made,
        lambda made: [StandardisationMeanStdPyTorch(0.25, 0.5, device_type="cpu"), made],
        lambda made: [made, preprocessor(kernel="unsharp", padding_mode="replicate")],
    ],
)
def test_certified_radii_hold_with_it(defences, digits: Dataset) -> None:
    made = preprocessor(clip_values=(0.0, 1.0))
    estimator = defend(defences(made))
    StandardTrainer(estimator, options=TrainingOptions(seed=0)).fit(
        digits.x_train[:512], digits.y_train[:512], nb_epochs=2, batch_size=64, verbose=False
    )
    certifier = PyTorchLipschitzCertifier.from_classifier(estimator)
    constants = certifier.lipschitz_constants()
    generator = torch.Generator().manual_seed(0)
    x = torch.from_numpy(digits.x_test[:40])
    change = torch.randn(x.shape, generator=generator)
    for size in (1e-2, 0.3):
        moved = x + size * change
        logits, other = (EstimatorModule(estimator, unit_range=False)(images).double() for images in (x, moved))
        slopes = (logits - other)[:, :, None] - (logits - other)[:, None, :]
        distances = (x - moved).double().flatten(1).norm(dim=1)[:, None, None]
        assert (slopes.abs() <= torch.from_numpy(constants) * distances * (1 + 1e-3)).all()
    prediction, radius = certifier.certify(x)
    assert np.array_equal(prediction, estimator.predict(x.numpy()).argmax(axis=1))
    assert (radius > 0).all()


def test_the_certificate_follows_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    made = preprocessor()
    certifier = PyTorchLipschitzCertifier.from_classifier(linear(made))
    before = certifier.lipschitz_report().lipschitz
    with torch.no_grad():
        made.layer.map.mul_(2)
    with monkeypatch.context() as without_tracing:
        without_tracing.setattr(analysis, "LipschitzGraph", None)
        assert certifier.lipschitz_report().lipschitz == pytest.approx(2 * before)
    assert made.layer.map.dtype == torch.float32
    made.clip_values = (0.25, 0.5)
    prediction, radius = certifier.certify(np.zeros((1, *SHAPE)))
    assert (prediction, radius) == (0, 0)  # all pixels are clamped to one number
    certifier.set_params(preprocessing_defences=preprocessor(kernel="identity"))
    other = float(preprocessor().layer.map.max())
    assert certifier.lipschitz_report().lipschitz == pytest.approx(other, rel=1e-6)
    last = WeightMapPreprocessor((8, 8, 1), channels_first=False)
    with torch.no_grad():
        last.layer.map.copy_(preprocessor().layer.map)
    turned = linear(last, channels_first=False)
    turned._input_shape = (8, 8, 1)
    assert PyTorchLipschitzCertifier.from_classifier(turned).lipschitz_report().lipschitz == pytest.approx(before)


def test_margin_training_moves_the_map_by_the_bound() -> None:
    made = preprocessor(clip_values=(0.0, 1.0))
    estimator = defend(made)
    made.join(estimator)
    trainer = LipschitzMarginTrainer(estimator, c=0.1)
    for _ in range(100):
        bound = trainer.graph.estimate().lipschitz
    proven = PyTorchLipschitzCertifier.from_classifier(estimator).lipschitz_report().lipschitz
    assert float(bound) <= proven
    assert float(bound) == pytest.approx(proven, rel=0.05)
    (slope,) = torch.autograd.grad(bound, made.layer.map)
    largest = made.layer.map == made.layer.map.max()
    assert slope[largest].item() == pytest.approx(float(bound) / float(made.layer.map.max()), rel=1e-4)
    assert slope[~largest].eq(0).all()
    graph = trainer.graph
    trainer.fit(X, Y, nb_epochs=1, verbose=False)
    assert trainer.graph is graph
    alone = WeightMapPreprocessor(SHAPE, apply_fit=False)
    with pytest.raises(ValueError, match="its WeightMapPreprocessor "):
        LipschitzMarginTrainer(defend(alone), c=0.1)


def test_a_subclass_of_it_has_no_certificate() -> None:
    class Squared(WeightMapPreprocessor):
        def forward(self, x: Tensor, y: object = None) -> tuple[Tensor, object]:
            return x.square(), y

    with pytest.raises(ValueError, match="the preprocessing Squared "):
        PyTorchLipschitzCertifier.from_classifier(defend(Squared(SHAPE)))
