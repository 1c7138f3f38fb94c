"""What may go wrong around the standard evaluation: kills, a full disk, lack of memory, passes that disagree."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing import get_context
from pathlib import Path
from signal import SIGKILL
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import Data, load_digits
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from torch import nn

from art_robust_plugins import EvaluationReport, Evaluator, ThreatModel
from art_robust_plugins.evaluation import Setting
from art_robust_plugins.evaluation.autoattack import AutoAttack
from art_robust_plugins.evaluation.autoattack.batches import BatchedPasses
from art_robust_plugins.files import load_state

from .builders import Small, custom, train_network, wrap

THREAT = ThreatModel("Linf", 0.1)
# Square's five thousand passes of a few images take longer than all others together.
GRADIENT_BASED = ["apgd-ce", "apgd-t", "fab-t"]


def evaluate(classifier: PyTorchClassifier, data: Data, **arguments: Any) -> EvaluationReport:
    arguments = {"batch_size": 4, "verbose": False, **arguments}
    return Evaluator(classifier, THREAT, **arguments).evaluate(*data)


def assert_same(report: EvaluationReport, expected: EvaluationReport) -> None:
    assert_array_equal(report.robust, expected.robust)
    assert_array_equal(report.adversarial, expected.adversarial)
    for result, wanted in zip(report.attacks, expected.attacks, strict=True):
        assert_array_equal(result.robust, wanted.robust)
        assert (result.forward_calls, result.backward_calls) == (wanted.forward_calls, wanted.backward_calls)


def in_child(weights: str, folder: str, points: int) -> None:
    """The process that the next test kills."""
    torch.set_num_threads(1)
    network = train_network(steps=0)
    network.load_state_dict(torch.load(weights, weights_only=True))
    x, y = load_digits()
    data = x[-40:][:points], y[-40:][:points]
    evaluate(wrap(network), data, state_dir=folder, attacks=GRADIENT_BASED, batch_size=1)


def test_an_evaluation_that_is_killed_five_times_ends_with_the_same_verdicts(
    network: nn.Module, data: Data, tmp_path: Path
) -> None:
    """At a random moment after one batch more is written, so that a fast machine does not finish before."""
    data = data[0][:6], data[1][:6]
    weights, folder = tmp_path / "weights.pt", tmp_path / "state"
    torch.save(network.state_dict(), weights)
    context = get_context("forkserver")
    context.set_forkserver_preload(["art_robust_plugins", "sklearn.datasets"])
    draw = np.random.default_rng(0)

    def count_written() -> int:
        return len(list(folder.glob("batches/[0-9]*.pt")))

    for _ in range(5):
        before = count_written()
        child = context.Process(target=in_child, args=(str(weights), str(folder), len(data[0])))
        child.start()
        while count_written() == before and child.is_alive():
            time.sleep(0.002)
        child.join(draw.uniform(0, 0.1))
        child.kill()
        child.join()
        assert child.exitcode == -SIGKILL
    resumed, expected = (
        evaluate(wrap(network), data, state_dir=place, attacks=GRADIENT_BASED, batch_size=1) for place in (folder, None)
    )
    assert_same(resumed, expected)


def test_a_disk_that_is_full_ends_the_evaluation_which_goes_on_when_there_is_room(
    classifier: PyTorchClassifier,
    data: Data,
    tmp_path: Path,
    no_larger_file_than: Callable[[int], AbstractContextManager[None]],
) -> None:
    given: dict[str, Any] = {"attacks": ["apgd-ce", "apgd-t"], "batch_size": 20}
    expected = evaluate(classifier, data, state_dir=tmp_path / "whole", **given)
    sizes = sorted(path.stat().st_size for path in (tmp_path / "whole").rglob("*.pt"))
    with no_larger_file_than(sizes[-1] - 1), pytest.raises(OSError, match=r"batches/\d\d-\d{6}\.pt") as full:
        evaluate(classifier, data, state_dir=tmp_path / "full", **given)
    assert full.value.errno == errno.EFBIG
    written = list((tmp_path / "full").rglob("*.*"))
    assert (tmp_path / "full" / "evaluation.pt") in written
    for path in written:
        load_state(path)  # nothing is half written, nothing temporary is left
    assert_same(evaluate(classifier, data, state_dir=tmp_path / "full", **given), expected)

    with no_larger_file_than(1000), pytest.raises(OSError, match=r"report/"):
        expected.save(tmp_path / "report")
    assert not list((tmp_path / "report").glob(".*"))


def test_lack_of_memory_outside_of_the_attacks_halves_the_passes_too(network: nn.Module, data: Data) -> None:
    small = Small(network)
    given: dict[str, Any] = {"attacks": ["apgd-ce"], "batch_size": 20}
    roomy, narrow = (evaluate(wrap(model), data, **given) for model in (network, small))
    assert_array_equal(roomy.robust, narrow.robust)
    assert_allclose(roomy.curve, narrow.curve, atol=0.1)  # other random starts
    assert small.largest == 5


def test_work_that_is_done_as_a_whole_is_begun_anew_with_smaller_passes() -> None:
    tried = []

    def work(size: int) -> str:
        tried.append(size)
        if size > 2:
            raise torch.OutOfMemoryError("too many")
        return "done"

    passes = BatchedPasses(nn.Identity(), 10)
    assert passes.run_whole(work) == "done"
    assert tried == [10, 5, 2]
    assert passes.size == 2
    with pytest.raises(torch.OutOfMemoryError):
        passes.run_whole(lambda size: work(3))
    with pytest.raises(RuntimeError, match="another"):
        passes.run_whole(lambda size: (_ for _ in ()).throw(RuntimeError("another")))


def test_images_that_only_the_attacks_own_passes_misclassify_are_flagged(network: nn.Module, data: Data) -> None:
    """Here the verdicts' passes know the labels, from the first attack on: no rounding, and not called so."""
    classifier = wrap(network)
    data = data[0][:20], data[1][:20]
    expected = evaluate(classifier, data, attacks=["apgd-ce", "apgd-t"])
    broken = round((expected.clean_accuracy - expected.attacks[0].robust_accuracy) * len(data[0]))
    predict, attacked = classifier.predict, []

    def begin(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
        attacked.append(len(x))
        return x

    def right(x: NDArray[np.float32], batch_size: int) -> NDArray[np.float32]:
        if not attacked:
            return predict(x, batch_size)
        near = np.abs(data[0][None] - x[:, None]).max(axis=(2, 3, 4)).argmin(axis=1)
        clean: NDArray[np.float32] = predict(data[0][near])
        return clean

    classifier.predict = right
    report = evaluate(classifier, data, attacks=[custom(begin), "apgd-ce", "apgd-t"])
    (flag,) = [flag for flag in report.flags if flag.name == "not-confirmed"]
    assert f"apgd-ce misclassified {broken} images in its own passes that the verdict's pass" in flag.evidence
    assert "no more than rounding" not in flag.advice
    assert report.robust_accuracy == report.clean_accuracy
    assert "not-confirmed" not in [flag.name for flag in expected.flags]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.45), ("L1", 1.2)])
def test_torchs_default_device_changes_nothing(norm: str, eps: float, network: nn.Module) -> None:
    """A tensor that was made on the default device would have no data."""
    x, y = (torch.from_numpy(values[-8:]) for values in load_digits())
    stages = ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    attack = AutoAttack(network.eval(), ThreatModel(norm, eps), version="custom", stages=stages)
    expected = attack.run(x, y)
    with torch.device("meta"):
        found = attack.run(x, y)
    assert torch.equal(found.robust, expected.robust)
    assert torch.equal(found.adversarial, expected.adversarial)
    assert 0 < expected.robust.sum() < 8


def test_the_evaluator_follows_no_default_device(network: nn.Module, data: Data) -> None:
    classifier = wrap(network)
    predict = classifier.predict

    def on_cpu(*args: Any, **given: Any) -> Any:
        with torch.device("cpu"):  # ART's own batches follow the default device
            return predict(*args, **given)

    expected = evaluate(classifier, data, attacks=["apgd-ce", "gaussian-0.1"])
    classifier.predict = on_cpu
    with torch.device("meta"):
        assert_same(evaluate(classifier, data, attacks=["apgd-ce", "gaussian-0.1"]), expected)
