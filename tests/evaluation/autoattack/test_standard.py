"""The versions of our AutoAttack: the reference's parameters, any physical batch, lack of memory, resuming, `fast`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import Data, load_digits
from numpy.testing import assert_array_equal
from torch import Tensor, nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import Evaluator, compare
from art_robust_plugins.evaluation.autoattack import AutoAttack, standard
from art_robust_plugins.evaluation.autoattack.apgd import APGD
from art_robust_plugins.evaluation.autoattack.batches import BatchedPasses, ChannelsLast, Streams, choose_layout

from ..builders import Small, train_network, wrap
from ..reference import needs_reference, reference_ensemble

THREAT = ThreatModel("Linf", 0.11)


@needs_reference
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("version", ["standard", "plus", "rand", "custom"])
def test_parameters_are_the_references(version: Any, norm: Any, network: nn.Module) -> None:
    stages = ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    reference = reference_ensemble(
        network, ThreatModel(norm, 0.1), seed=0, version=version, stages=stages if version == "custom" else ()
    )
    if version != "custom":
        assert list(standard.STAGES[version]) == reference.attacks_to_run
    for stage in reference.attacks_to_run:
        ours = standard.stage_attack(stage, version, network, ThreatModel(norm, 0.1), classes=10).parameters
        theirs = getattr(reference, {"apgd-t": "apgd_targeted"}.get(stage, stage.split("-", maxsplit=1)[0]))
        names = {"n_restarts": "restarts", "n_iter": "steps", "eot_iter": "samples", "use_largereps": "larger_radii"}
        names |= {"n_queries": "queries", "p_init": "p_init", "alpha_max": "alpha_max", "eta": "eta", "beta": "beta"}
        names |= {"n_target_classes": "targets"} if stage.endswith("-t") else {}
        for name, own in names.items():
            # The reference sets one restart when it runs fab-t.
            if hasattr(theirs, name) and own in ours and (stage, own) != ("fab-t", "restarts"):
                assert ours[own] == getattr(theirs, name), (stage, own)


@needs_reference
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("version", ["standard", "plus", "rand", "custom"])
def test_every_version_gives_the_references_verdicts(version: Any, norm: Any, network: nn.Module) -> None:
    """Its own evaluation from begin to end, with as few iterations as ours has here."""
    x, y = (torch.from_numpy(values[-20:]) for values in load_digits())
    threat = ThreatModel(norm, {"Linf": 0.1, "L2": 0.45, "L1": 1.2}[norm])
    stages = ["fab-t", "square", "apgd-dlr"] if version == "custom" else []
    reference = reference_ensemble(network, threat, seed=2, version=version, stages=stages)
    reference.apgd.n_iter = reference.apgd_targeted.n_iter = 10
    reference.fab.n_iter, reference.square.n_queries = 6, 40
    names = inspect.signature(reference.run_standard_evaluation).parameters
    found = reference.run_standard_evaluation(x, y, **{"batch_size" if "batch_size" in names else "bs": 10})
    expected = found[0] if isinstance(found, tuple) else found
    ours = AutoAttack(network, threat, version=version, stages=stages, seed=2, batch_size=10, physical_batch_size=7)
    with torch.no_grad():
        robust = network(expected).argmax(dim=1) == y
        clean = network(x).argmax(dim=1) == y
    assert torch.equal(ours.run(x, y).robust, robust)
    assert 0 < robust.sum() < clean.sum()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_the_physical_batch_changes_no_verdict(norm: str, network: nn.Module) -> None:
    x, y = (torch.from_numpy(values[-40:]) for values in load_digits())
    threat = ThreatModel(norm, {"Linf": 0.1, "L2": 0.45, "L1": 1.2}[norm])
    found = [
        AutoAttack(network, threat, seed=1, batch_size=15, physical_batch_size=size).run(x, y)
        for size in (1, 7, 15, 64)
    ]
    for other in found[1:]:
        assert torch.equal(found[0].robust, other.robust)
        for stage, left in found[0].left.items():
            assert torch.equal(left, other.left[stage])
    assert 0 < found[0].robust.sum() < 40
    with torch.no_grad():
        assert torch.equal(network(found[0].adversarial).argmax(dim=1) == y, found[0].robust)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes(classes: int) -> None:
    x, y = (torch.from_numpy(values[-20:]) for values in load_digits(classes))
    found = AutoAttack(train_network(classes, steps=30).eval(), ThreatModel("L2", 1.0), version="plus").run(x, y.int())
    assert ("apgd-t" in found.left) == (classes >= 4)
    assert ("apgd-dlr" in found.left) == (classes >= 3)
    assert len(found.not_run) + len(found.left) == 6
    if classes == 3:
        assert found.not_run == ["apgd-t: the targeted DLR loss needs 4 classes, the network has 3."]


def test_nothing_is_left_to_attack(network: nn.Module) -> None:
    x = torch.from_numpy(load_digits()[0][-5:])
    with torch.no_grad():
        wrong = (network(x).argmax(dim=1) + 1) % 10
    found = AutoAttack(network, THREAT).run(x, wrong)
    assert not found.robust.any()
    assert list(found.left) == list(standard.STAGES["standard"])
    assert torch.equal(found.adversarial, x)


def test_what_is_asked_for_must_exist(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^version: got 'standart',"):
        AutoAttack(network, THREAT, version="standart")
    with pytest.raises(ValueError, match=r"^stages: got 'pgd',"):
        AutoAttack(network, THREAT, version="custom", stages=["pgd"])
    with pytest.raises(ValueError, match=r"^stages: got \['fab'\] .*'standard'"):
        AutoAttack(network, THREAT, stages=["fab"])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(2, 1, 8, 8).double(), torch.zeros(2).long(), r"^x: got torch\.float64 \(2, 1, 8, 8\),"),
        (torch.rand(0, 1, 8, 8), torch.zeros(0).long(), r"^x: got torch\.float32 \(0, 1, 8, 8\),"),
        (255 * torch.ones(2, 1, 8, 8), torch.zeros(2).long(), r"^x: got values in \[255, 255\],"),
        (torch.rand(2, 1, 8, 8) * torch.nan, torch.zeros(2).long(), r"^x: got values in \[nan, nan\],"),
        (torch.rand(2, 1, 8, 8), torch.zeros(1).long(), r"^y: got torch\.int64 \(1,\),"),
        (torch.rand(2, 1, 8, 8), torch.zeros(2, 10), r"^y: got torch\.float32 \(2, 10\),"),
        (torch.rand(2, 1, 8, 8), torch.tensor([0, 10]), r"^y: got labels from 0 to 10,"),
    ],
)
def test_data_that_do_not_fit_are_refused(x: Tensor, y: Tensor, message: str, network: nn.Module) -> None:
    with pytest.raises(ValueError, match=message):
        AutoAttack(network, THREAT).run(x, y)


def test_settings_that_do_not_fit_are_refused(network: nn.Module) -> None:
    for name in ("batch_size", "physical_batch_size"):
        with pytest.raises(ValueError, match=f"^{name}: got 0,"):
            AutoAttack(network, THREAT, **{name: 0})
    with pytest.raises(ValueError, match=r"^eps: got 8 .*'8/255'"):
        AutoAttack(network, ThreatModel("Linf", 8)).run(torch.rand(1, 1, 8, 8), torch.zeros(1).long())


@pytest.mark.usefixtures("short")
def test_a_callers_autocast_changes_nothing(network: nn.Module, classifier: PyTorchClassifier, data: Data) -> None:
    x, y = (torch.from_numpy(values[:12]) for values in data)
    evaluator = Evaluator(classifier, THREAT, attacks=["apgd-ce"], verbose=False)
    attack = AutoAttack(network, THREAT, version="custom", stages=["apgd-ce", "fab-t"])
    expected, report = attack.run(x, y), evaluator.evaluate(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        found, again = attack.run(x, y), evaluator.evaluate(x, y)
    assert torch.equal(found.adversarial, expected.adversarial)
    assert_array_equal(again.adversarial, report.adversarial)


@pytest.mark.usefixtures("short")
def test_a_randomised_networks_passes_keep_to_the_logical_batch(data: Data, network: nn.Module) -> None:
    """Its numbers come with its passes, so that a GPU's free memory must not decide how many images are in one."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x + 0.1 * torch.randn_like(x))

    def run(physical: int | None) -> Any:
        given = {"batch_size": 5, "physical_batch_size": physical, "verbose": False}
        return Evaluator(wrap(Noisy()), THREAT, attacks="apgd-ce", **given).evaluate(data[0][:20], data[1][:20])

    expected = run(None)
    assert expected.settings["physical_batch_size"] == 5
    assert_array_equal(run(20).attacks[0].robust, expected.attacks[0].robust)


@pytest.mark.usefixtures("short")
def test_what_does_not_fit_into_memory_is_halved(network: nn.Module) -> None:
    x, y = (torch.from_numpy(values[-20:]) for values in load_digits())
    small = Small(network)
    plain, halved = (AutoAttack(model, THREAT, batch_size=20).run(x, y) for model in (network, small))
    assert torch.equal(plain.robust, halved.robust)
    assert small.largest == 5
    with pytest.raises(torch.OutOfMemoryError):
        BatchedPasses(Small(network), 8).run_over(1, lambda part: (small(x[:6]),))


def test_a_network_that_takes_one_layout_of_images_gets_it(network: nn.Module) -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.convolution(x).view(len(x), -1)

    viewing = Viewing()
    assert choose_layout(viewing, torch.rand(1, 3, 8, 8)) is viewing
    turned = choose_layout(network, torch.rand(1, 1, 8, 8))
    assert isinstance(turned, ChannelsLast)
    assert turned.model is network


def test_other_errors_are_raised(network: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        BatchedPasses(network, 8).logits(torch.rand(4, 1, 9, 9))


def test_points_of_a_logical_batch_share_its_stream() -> None:
    streams = Streams(7, 3, seed=5)
    expected = [torch.rand(2, 4, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    drawn = streams.draw(torch.rand, torch.tensor([0, 2, 3, 5]), (4,))
    assert torch.equal(drawn, torch.cat(expected))
    torch.manual_seed(5)
    assert torch.equal(Streams(3, 3, seed=5).draw(torch.randn, torch.arange(3), (6, 6)), torch.randn(3, 6, 6))


# -------------------------------------------------------------------------------------------------------- the Evaluator


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("stop_at", [2, 5, 8])
def test_an_interrupted_evaluation_is_resumed_inside_its_stage(
    stop_at: int, classifier: PyTorchClassifier, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: Path | None) -> Any:
        given = {"batch_size": 10, "state_dir": folder, "verbose": False}
        return Evaluator(classifier, THREAT, **given).evaluate(*data)

    expected, calls = run(None), [0]
    prepare = standard.stage_attack

    def stop(*args: Any, **given: Any) -> Any:
        attack = prepare(*args, **given)

        class Counting:
            parameters = attack.parameters

            def __call__(self, x: Tensor, y: Tensor) -> Tensor:
                calls[0] += 1
                if calls[0] == stop_at:
                    raise KeyboardInterrupt
                return attack(x, y)

        return Counting()

    monkeypatch.setattr("art_robust_plugins.evaluation.libraries.autoattack.stage_attack", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    calls[0] = -1000
    report = run(tmp_path)
    assert_array_equal(report.robust, expected.robust)
    assert_array_equal(report.adversarial, expected.adversarial)
    for result, wanted in zip(report.attacks, expected.attacks, strict=True):
        assert (result.forward_calls, result.backward_calls) == (wanted.forward_calls, wanted.backward_calls)


@pytest.mark.usefixtures("short")
def test_suites_and_single_stages(classifier: PyTorchClassifier, data: Data) -> None:
    few = data[0][:12], data[1][:12]
    report = Evaluator(classifier, THREAT, attacks=["plus", "apgd-dlr", "fab"], verbose=False).evaluate(*few)
    names = [result.name for result in report.attacks]
    assert names == [*(f"plus-{stage}" for stage in standard.STAGES["plus"]), "apgd-dlr", "fab"]
    assert [result.cumulative for result in report.attacks] == [True] * 6 + [False] * 2
    assert report.autoattack_accuracy is None
    assert report.attacks[0].parameters["restarts"] == 5
    assert report.settings["backend"] == "native"


# ------------------------------------------------------------------------------------------------------- the fast level


@pytest.mark.usefixtures("short")
def test_the_fast_level_is_never_called_standard(classifier: PyTorchClassifier, data: Data, tmp_path: Path) -> None:
    report = Evaluator(classifier, THREAT, attacks="fast", verbose=False).evaluate(*data)
    assert [result.name for result in report.attacks] == ["fast-apgd-ce", "fast-apgd-t"]
    assert report.autoattack_accuracy is None
    report.save(tmp_path)
    texts = [str(report), (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()]
    for text in texts:
        assert "NOT the standard" in text
        assert "leaves out fab-t and square" in text
    assert "fast, NOT standard" in compare({"run": report})
    with pytest.raises(ValueError, match=r"fast-apgd-ce: .*reference"):
        Evaluator(classifier, THREAT, attacks="fast", backend="reference", verbose=False).evaluate(*data)


def test_a_search_in_low_precision_claims_no_break_that_float32_does_not_confirm() -> None:
    class Wrong(nn.Module):
        """Sees another class in low precision than in float32."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.layer(x.flatten(1))
            return logits.roll(1, dims=1) if logits.dtype == torch.bfloat16 else logits

    torch.manual_seed(0)
    network = Wrong().eval()
    x = torch.rand(8, 3, 2, 2)
    y = network(x).argmax(dim=1)
    found = APGD(network, ThreatModel("Linf", 1e-4), steps=5, precision=torch.bfloat16)(x, y)
    assert torch.equal(found, x)


def test_a_search_in_low_precision_finds_what_there_is(network: nn.Module) -> None:
    x, y = (torch.from_numpy(values[-20:]) for values in load_digits())
    found = APGD(network, ThreatModel("Linf", 0.2), steps=10, precision=torch.bfloat16)(x, y)
    with torch.no_grad():
        wrong = network(found).argmax(dim=1) != y
    assert wrong.float().mean() > 0.8
