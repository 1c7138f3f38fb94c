"""What `RobustTrainer` refuses before anything is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_robust_plugins import RobustTrainer, StandardTrainer, TrainingOptions
from art_robust_plugins.training import BANG

from .builders import same, weights
from .engine.digits import X, Y, classifier, network

ONE_HOT_OF_9 = np.eye(9)[np.minimum(Y, 8)]
WITH_NAN = np.where(np.arange(64).reshape(1, 8, 8) == 3, np.nan, X[:10])
REFUSED = [
    ({"x": WITH_NAN, "y": Y[:10]}, "x: got NaN or infinity,"),
    ({"x": X * 255}, "x: got values in [0, 255],"),
    ({"x": X[:, :, :7]}, "x: got an array of shape (600, 1, 7, 8),"),
    ({"x": X[0]}, "x: got an array of shape (1, 8, 8),"),
    ({"x": X[:0], "y": Y[:0]}, "x: got no samples,"),
    ({"x": X.astype(str)}, "x: got values of type <U32,"),
    ({"y": ONE_HOT_OF_9}, "y: got labels of shape (600, 9),"),
    ({"y": np.full((600, 10), 0.2)}, "y: got [0.2, 0.2, 0.2, 0.2, ...] in row 0,"),
    ({"y": Y + 1}, "y: got labels from 1 to 10,"),
    ({"y": Y + 0.5}, "y: got labels that are not whole numbers,"),
    ({"y": Y[:-1]}, "y: got 599 labels for 600 samples,"),
    ({"batch_size": 0}, "batch_size: got 0,"),
    ({"nb_epochs": 1.5}, "nb_epochs: got 1.5,"),
    ({"scheduler": "cosine"}, "scheduler: got str,"),
    ({"validation_data": X}, "validation_data: got ndarray,"),
    ({"validation_data": (X * 2, Y)}, "validation_data[0]: got values in [0, 2],"),
]


@pytest.mark.parametrize(("changed", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_bad_input_is_refused_before_anything_is_trained(changed: dict[str, Any], sentence: str) -> None:
    trained = classifier()
    before = weights(trained)
    arguments = {"x": X, "y": Y, "nb_epochs": 1, "verbose": False, **changed}
    with pytest.raises(ValueError) as error:  # noqa: PT011
        StandardTrainer(trained).fit(**arguments)
    assert str(error.value).startswith(sentence)
    assert same(before, weights(trained))


def test_unknown_keywords_raise_where_art_swallows_them() -> None:
    with pytest.raises(TypeError, match=r"^epochs: got an unknown keyword"):
        StandardTrainer(classifier()).fit(X, Y, epochs=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("instruments", [BANG(), ["bang"], [BANG], 3])
def test_what_is_no_list_of_instruments_is_refused(instruments: Any) -> None:
    with pytest.raises(TypeError, match=r"instruments: got .*,"):
        StandardTrainer(classifier(), instruments=instruments)


def test_one_instrument_cannot_be_given_twice() -> None:
    bang = BANG()
    with pytest.raises(ValueError, match=r"instruments: got one object twice in .*,"):
        StandardTrainer(classifier(), instruments=[bang, bang])
    with pytest.raises(ValueError, match="layers: got 7,"):
        BANG(layers=7)  # type: ignore[arg-type]


def test_unfit_classifiers_are_refused() -> None:
    without = PyTorchClassifier(network(), nn.CrossEntropyLoss(), (1, 8, 8), 10)
    with pytest.raises(ValueError, match="classifier: it has no optimizer"):
        StandardTrainer(without)
    with pytest.raises(TypeError, match="classifier: got Sequential,"):
        StandardTrainer(network())  # type: ignore[arg-type]
    model = nn.Sequential(network(), nn.Softmax(dim=1))
    softmax = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), 0.1)
    )
    with pytest.raises(ValueError, match=r"classifier: .*softmax"):
        StandardTrainer(softmax)
    with pytest.raises(TypeError, match="abstract"):
        RobustTrainer(classifier())  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scheduler_interval": "batch"}, "scheduler_interval: got 'batch',"),
        ({"mixed_precision": "fp16"}, "mixed_precision: got 'fp16',"),
        ({"seed": -1}, "seed: got -1,"),
        ({"max_gradient_norm": 0}, "max_gradient_norm: got 0,"),
        ({"validation_steps": 0}, "validation_steps: got 0,"),
        ({"resume": True}, "resume: got True without checkpoint_dir,"),
    ],
)
def test_options_are_checked(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        TrainingOptions(**options)
    assert str(error.value).startswith(sentence)


def test_optimizers_and_schedulers_that_the_loop_cannot_drive() -> None:
    trained = classifier()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(trained.optimizer)
    with pytest.raises(ValueError, match=r"^scheduler: got ReduceLROnPlateau "):
        StandardTrainer(trained, options=TrainingOptions(scheduler_interval="step")).fit(X, Y, scheduler=plateau)
    trained._optimizer = torch.optim.LBFGS(trained.model.parameters())
    with pytest.raises(ValueError, match=r"^classifier: its optimizer LBFGS "):
        StandardTrainer(trained).fit(X, Y)


def test_the_earlier_name_of_draw_still_works_and_warns() -> None:
    trainer = StandardTrainer(classifier())
    with pytest.warns(DeprecationWarning, match="draw"):
        assert torch.equal(trainer.drawn(torch.zeros_like, torch.ones(3)), torch.zeros(3))


def test_numpys_values_are_options() -> None:
    """They are Python's own afterwards, as checkpoints compare them."""
    options = TrainingOptions(
        keep_best=np.bool_(True),
        schedule=np.array("piecewise")[()],
        milestones=np.array([1, 2]),
        milestone_decay=np.float32(0.5),
        freeze_batch_norm=np.array(["a", "b"]),
        accumulation_steps=np.array(2),
        seed=np.uint8(3),
    )
    plain = TrainingOptions(
        keep_best=True,
        schedule="piecewise",
        milestones=(1, 2),
        milestone_decay=0.5,
        freeze_batch_norm=("a", "b"),
        accumulation_steps=2,
        seed=3,
    )
    assert repr(options) == repr(plain)
    with pytest.raises(ValueError, match="keep_best: got"):
        TrainingOptions(keep_best=np.array([True, False]))
