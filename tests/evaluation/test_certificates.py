"""Certified points take part in no pass of AutoAttack, and no verdict changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import Data, load_digits
from torch import Tensor, nn

from art_robust_plugins import Evaluator, LipschitzMarginTrainer, PyTorchLipschitzCertifier, ThreatModel
from art_robust_plugins.evaluation import evaluator
from art_robust_plugins.evaluation.autoattack.apgd import APGD
from art_robust_plugins.evaluation.autoattack.fab import FAB
from art_robust_plugins.evaluation.autoattack.square import Square
from art_robust_plugins.evaluation.certificates import WITNESSES, leave_witnesses
from art_robust_plugins.models import create_model

from .builders import custom, step

RADII = {"Linf": 0.08, "L2": 0.5, "L1": 1.2}


class Watched(nn.Module):
    """Notes the images that it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        logits: Tensor = self.network(x)
        return logits


@pytest.fixture(scope="module")
def points(network: nn.Module) -> tuple[Tensor, Tensor]:
    x, y = (torch.from_numpy(values[-40:]) for values in load_digits())
    return x, y


def attacks(model: nn.Module, threat: ThreatModel) -> dict[str, APGD | FAB | Square]:
    sizes = {"batch_size": 16, "physical_batch_size": 16}
    return {
        "apgd": APGD(model, threat, steps=10, restarts=2, larger_radii=threat.norm == "L1", **sizes),
        "apgd-t": APGD(model, threat, loss="dlr-targeted", steps=10, targets=3, **sizes),
        "fab": FAB(model, threat, targets=None, steps=6, restarts=2, **sizes),
        "fab-t": FAB(model, threat, targets=3, steps=6, **sizes),
        "square": Square(model, threat, queries=40, **sizes),
    }


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("name", ["apgd", "apgd-t", "fab", "fab-t", "square"])
def test_points_that_are_spared_change_nothing_for_the_others(
    norm: str, name: str, network: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    x, y = points
    watched = Watched(network.eval())
    attack = attacks(watched, ThreatModel(norm, RADII[norm]))[name]
    whole = attack(x, y)
    seen, watched.seen = watched.seen, 0
    robust = network(whole).argmax(dim=1) == y
    spared = robust & (torch.arange(len(x)) % 4 > 0)
    assert 0 < int(spared.sum()) < int(robust.sum()) < len(x)
    found = attack(x, y, spared)
    assert watched.seen < seen
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
    assert torch.equal(network(found).argmax(dim=1), network(whole).argmax(dim=1))
    watched.seen = 0
    assert torch.equal(attack(x, y, torch.ones_like(spared)), x)
    assert watched.seen == 0


@pytest.fixture(scope="module")
def certifier() -> PyTorchLipschitzCertifier:
    x, y = load_digits()
    torch.manual_seed(0)
    network = create_model("orthogonal-mlp", (1, 8, 8), 10, width=32, depth=1)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    loss = nn.CrossEntropyLoss()
    classifier = PyTorchClassifier(network, loss, (1, 8, 8), 10, optimizer=optimizer, clip_values=(0, 1))
    LipschitzMarginTrainer(classifier, c=0.5).fit(x[:1000], y[:1000], nb_epochs=5, batch_size=64, verbose=False)
    return PyTorchLipschitzCertifier.from_classifier(classifier)


@pytest.fixture(scope="module")
def some() -> Data:
    x, y = load_digits()
    return x[-60:], y[-60:]


@pytest.mark.parametrize(("norm", "eps"), [("L2", 0.4), ("Linf", 0.06), ("L1", 0.5)])
def test_the_report_is_that_of_attacks_on_all_points(
    norm: str, eps: float, certifier: PyTorchLipschitzCertifier, some: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Square, "__init__", _with_few_queries(Square.__init__))
    threat = ThreatModel(norm, eps)
    reports = [
        Evaluator(certifier, threat, skip_certified=skip, verbose=False).evaluate(*some) for skip in (True, False)
    ]
    skipped, whole = reports
    assert np.array_equal(skipped.robust, whole.robust)
    np.testing.assert_allclose(skipped.adversarial, whole.adversarial, rtol=0, atol=1e-5)
    for one, other in zip(skipped.attacks, whole.attacks, strict=True):
        assert np.array_equal(one.robust, other.robust)
        assert one.forward_calls < other.forward_calls
    certified = int((whole.radii >= eps * (1 + 1e-5)).sum())
    computed = certifier.certify_as_computed(some[0], norm=norm)[2]
    assert int((computed >= eps * (1 + 1e-5)).sum()) == certified  # no radius is that close to eps
    counts = [report.settings["certificate"] for report in reports]
    assert certified > WITNESSES
    assert counts[0]["points not attacked"] == certified - WITNESSES
    assert counts[0]["certified points attacked"] == WITNESSES
    assert (counts[1]["points not attacked"], counts[1]["certified points attacked"]) == (0, certified)


@pytest.mark.parametrize(("attacks", "backend"), [(custom(step), "native"), ("apgd-ce", "reference")])
def test_attacks_that_cannot_leave_points_out_get_all_and_the_report_says_so(
    attacks: str, backend: str, certifier: PyTorchLipschitzCertifier, some: Data
) -> None:
    if backend == "reference":
        pytest.importorskip("pyautoattack")
    threat = ThreatModel("Linf", 0.01)
    report = Evaluator(certifier, threat, attacks=attacks, backend=backend, verbose=False).evaluate(*some)
    certificate = report.settings["certificate"]
    assert certificate["points not attacked"] == 0
    assert certificate["certified points attacked"] > WITNESSES


def _with_few_queries(make):
    def construct(self, *arguments, **options):
        make(self, *arguments, **{**options, "queries": 60})

    return construct


def test_witnesses_show_a_certificate_that_is_wrong(
    certifier: PyTorchLipschitzCertifier, some: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exaggerate(x, batch_size=128, *, norm="L2"):
        outputs = certifier.predict(x.numpy() if isinstance(x, Tensor) else x)
        return outputs.argmax(axis=1), np.full(len(outputs), 100.0), np.full(len(outputs), 100.0)

    monkeypatch.setattr(certifier, "certify_as_computed", exaggerate)
    report = Evaluator(certifier, ThreatModel("Linf", 0.5), attacks="apgd-ce", verbose=False).evaluate(*some)
    assert report.settings["certificate"]["points not attacked"] > 0
    assert any(flag.name == "certificate-broken" and flag.severity == "severe" for flag in report.flags)


def test_witnesses_are_the_points_whose_radii_are_the_smallest() -> None:
    radii = torch.rand(60, generator=torch.Generator().manual_seed(0))
    spared = leave_witnesses(radii, 0.2)
    attacked = ~spared & (radii >= 0.2)
    assert int(attacked.sum()) == WITNESSES
    assert not bool(spared[radii < 0.2].any())
    assert radii[attacked].max() <= radii[spared].min()
    assert not bool(leave_witnesses(radii[:WITNESSES], 0.0).any())


def test_points_that_a_stopped_evaluation_spared_stay_spared(
    certifier: PyTorchLipschitzCertifier, some: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = Evaluator(certifier, ThreatModel("L2", 0.2), attacks="apgd-ce", state_dir=tmp_path, verbose=False)
    first = stopped.evaluate(*some)
    honest = certifier.certify_as_computed

    def reverse(*arguments: Any, **options: Any) -> Any:
        prediction, exact, computed = honest(*arguments, **options)
        return prediction, exact, np.where(computed > 0.2, 0.2 + 1 / computed, computed)

    monkeypatch.setattr(certifier, "certify_as_computed", reverse)
    again = stopped.evaluate(*some)
    counts = [report.settings["certificate"]["points not attacked"] for report in (first, again)]
    assert counts[0] == counts[1] > 0
    assert again.attacks[0].forward_calls == first.attacks[0].forward_calls


@pytest.mark.parametrize("kind", ["attacks all points", "has no certificate"])
def test_an_evaluation_that_spared_points_continues_as_no_other(
    kind: str, certifier: PyTorchLipschitzCertifier, some: Data, tmp_path: Path
) -> None:
    def make(estimator: PyTorchClassifier, skip: bool = True) -> Evaluator:
        return Evaluator(
            estimator,
            ThreatModel("L2", 0.2),
            attacks="apgd-ce",
            state_dir=tmp_path,
            skip_certified=skip,
            verbose=False,
        )

    first = make(certifier).evaluate(*some).settings["certificate"]
    assert first["points not attacked"] > 0
    again = make(certifier).evaluate(*some).settings["certificate"]
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    plain = PyTorchClassifier(certifier.model, certifier.loss, (1, 8, 8), 10, clip_values=(0, 1))
    other = make(certifier, skip=False) if kind == "attacks all points" else make(plain)
    with pytest.raises(ValueError, match="that left out certified points, expected one that attacks all"):
        other.evaluate(*some)


def test_an_evaluation_that_attacked_all_continues_with_a_certificate(
    certifier: PyTorchLipschitzCertifier, some: Data, tmp_path: Path
) -> None:
    plain = PyTorchClassifier(certifier.model, certifier.loss, (1, 8, 8), 10, clip_values=(0, 1))
    reports = [
        Evaluator(each, ThreatModel("L2", 0.2), attacks="apgd-ce", state_dir=tmp_path, verbose=False).evaluate(*some)
        for each in (plain, certifier)
    ]
    assert reports[1].attacks[0].forward_calls == reports[0].attacks[0].forward_calls
    certificate = reports[1].settings["certificate"]
    assert certificate["points not attacked"] == 0
    assert certificate["certified points attacked"] > WITNESSES


def test_a_point_whose_certificate_float32_can_break_is_attacked() -> None:
    """Logits x1 and x2 with 2**17 added: their margin is exact, and float32 rounds them to multiples of 1/64."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(2, 4))
        network[1].bias.fill_(2.0**17)
    certifier = PyTorchLipschitzCertifier(network, nn.CrossEntropyLoss(), (1, 2, 2), 2, clip_values=(0, 1))
    x = np.full((60, 1, 2, 2), 0.5, dtype=np.float32)
    x[:, 0, 0, 0] += 0.012
    exact, computed = certifier.certify_as_computed(x)[1:]
    np.testing.assert_allclose(exact, 0.012 / math.sqrt(2), rtol=1e-3)
    assert computed.max() == 0
    reports = [
        Evaluator(certifier, ThreatModel("L2", 0.007), attacks="square", skip_certified=skip, verbose=False).evaluate(
            x, np.zeros(60, dtype=int)
        )
        for skip in (True, False)
    ]
    assert reports[0].settings["certificate"]["points not attacked"] == 0
    assert np.array_equal(reports[0].robust, reports[1].robust)
    assert reports[0].robust_accuracy < reports[0].clean_accuracy
    assert "certificate-rounded" in [flag.name for flag in reports[0].flags]
    assert "certificate-broken" not in [flag.name for flag in reports[0].flags]


def test_norms_are_proven_and_points_certified_in_the_main_process_alone(
    certifier: PyTorchLipschitzCertifier, some: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    share, depth, calls = evaluator.share_from_main, [0], []

    def watch(processes: Any, work: Any) -> Any:
        depth[0] += 1
        try:
            return share(processes, work)
        finally:
            depth[0] -= 1

    for name in ("certify_as_computed", "lipschitz_constants"):
        honest = getattr(certifier, name)

        def note(*arguments: Any, honest: Any = honest, **options: Any) -> Any:
            calls.append(depth[0])
            return honest(*arguments, **options)

        monkeypatch.setattr(certifier, name, note)
    monkeypatch.setattr(evaluator, "share_from_main", watch)
    Evaluator(certifier, ThreatModel("L2", 0.2), attacks="apgd-ce", verbose=False).evaluate(*some)
    assert len(calls) >= 2
    assert min(calls) == 1
