"""The ascent starts from each sample's previous adversary: what is kept, where it lies, and that nothing forgets it."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from art import config
from art.defences.preprocessor import MixupPyTorch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from art_robust_plugins import LocalBallTrainer, PGDTrainer, ThreatModel, TRADESTrainer, TrainingOptions
from art_robust_plugins.files import load_state, save_state
from art_robust_plugins.training.change_store import ChangeStore
from art_robust_plugins.training.engine.augmentation import Placement
from art_robust_plugins.training.engine.identity import LATER_PARAMETERS, describe_method
from art_robust_plugins.training.engine.samples import Samples
from art_robust_plugins.training.overfitting import OverfittingWatch

from ..builders import same, weights
from .adversaries import L1, L2, LINF, X, Y, classifier, plain

COUNT = 50


class Watched(PGDTrainer):
    """Keeps what each step did: the samples, x, the start, xa, eps, and the store before and after it."""

    def __init__(self, *arguments: Any, **changes: Any) -> None:
        super().__init__(*arguments, **changes)
        self.steps_seen: list[dict[str, Any]] = []

    def adversary(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.change_store is not None
        assert self.samples is not None
        before = self.change_store.changes.clone()
        xa = super().adversary(x, y)
        seen = {"samples": self.samples, "x": x.clone(), "xa": xa.clone(), "eps": self.current_threat.eps}
        self.steps_seen.append({**seen, "before": before, "after": self.change_store.changes.clone()})
        self.steps_seen[-1]["start"] = self.started
        return xa

    def start_point(self, x: Tensor) -> Tensor:
        self.started = super().start_point(x)
        return self.started


def fit(threat: ThreatModel = LINF, *, epochs: int = 3, **changes: Any) -> Watched:
    """Batches of 16, 16, 16 and 2; a step size below eps, so that the start shows in the adversary."""
    options = {"seed": 0, **changes.pop("options", {})}
    settings = {"steps": 1, "step_size": 0.3 * threat.eps, "start": "previous", **changes}
    trainer = Watched(classifier(plain()), threat=threat, **settings, options=TrainingOptions(**options))
    trainer.fit(X[:COUNT], Y[:COUNT], nb_epochs=epochs, batch_size=16, verbose=False)
    return trainer


# -------------------------------------------------------------------------------------------------- what is kept
def test_the_store_holds_the_change_as_an_int8_share_of_eps_and_the_next_ascent_starts_there() -> None:
    trainer = fit(eps_warmup_epochs=2.5)
    radii = set()
    for number, step in enumerate(trainer.steps_seen):
        rows, x, eps = step["samples"].rows, step["x"], step["eps"]
        assert torch.equal(x, X[rows])
        expected = (127 * ((step["xa"] - x) / eps)).round()
        assert step["after"].dtype == torch.int8
        assert torch.equal(step["after"][rows].float(), expected)
        others = torch.ones(COUNT, dtype=torch.bool)
        others[rows] = False
        assert torch.equal(step["after"][others], step["before"][others])
        if number >= 4:  # the kept change grows with eps
            start = (x + step["before"][rows] * (eps / 127)).clamp(0, 1)
            torch.testing.assert_close(step["start"], start, rtol=0, atol=1e-6)
            assert bool((step["before"][rows].abs() < 127).any())
            radii.add(eps)
    assert len(radii) == 7  # six steps of growth, and the whole radius


def test_the_first_epoch_starts_from_uniform_changes() -> None:
    seen = fit(epochs=1, start_noise=0.7).steps_seen
    shares = torch.cat([(step["start"] - step["x"])[(step["x"] > 0.1) & (step["x"] < 0.9)] / 0.1 for step in seen])
    assert len(shares) > 400
    assert float(shares.abs().max()) <= 1 + 1e-5
    assert abs(float(shares.mean())) < 4 * math.sqrt(1 / 3 / len(shares))
    assert abs(float(shares.square().mean()) - 1 / 3) < 4 * math.sqrt(4 / 45 / len(shares))


def test_start_noise_is_a_uniform_share_of_eps_around_the_kept_change() -> None:
    steps = fit(start_noise=0.5, epochs=4).steps_seen[4:]
    shares = []
    for step in steps:
        x, kept = step["x"], step["before"][step["samples"].rows] / 127
        free = (x > 0.2) & (x < 0.8) & (kept.abs() < 0.5)
        shares.append(((step["start"] - x) / 0.1 - kept)[free])
        assert float((step["start"] - x).abs().max()) <= 0.1 + 1e-6
    noise = torch.cat(shares)
    assert len(noise) > 200
    assert 0.45 < float(noise.abs().max()) <= 0.5 + 1e-5
    assert abs(float(noise.square().mean()) - 0.25 / 3) < 4 * 0.25 * math.sqrt(4 / 45 / len(noise))


@pytest.mark.parametrize("threat", [L2, L1], ids=str)
def test_other_norms_keep_shares_in_float16(threat: ThreatModel) -> None:
    for number, step in enumerate(fit(threat).steps_seen):
        rows, x = step["samples"].rows, step["x"]
        assert torch.equal(step["after"][rows], ((step["xa"] - x) / threat.eps).half())
        if number >= 4:
            start = threat.project(x + threat.eps * step["before"][rows].float(), x, 0, 1)
            torch.testing.assert_close(step["start"], start, rtol=0, atol=1e-6)
            assert float(threat.distance(step["start"], x).max()) > 0.3 * threat.eps


def test_a_sample_that_no_batch_has_had_starts_uniformly() -> None:
    """With drop_last two samples of each epoch are left out."""
    trainer = fit(epochs=2, options={"drop_last": True})
    first = torch.cat([step["samples"].rows for step in trainer.steps_seen[:3]])
    assert len(first) == 48
    new = 0
    for step in trainer.steps_seen[3:]:
        for row, x, start in zip(step["samples"].rows, step["x"], step["start"], strict=True):
            known = bool((first == row).any())
            new += not known
            expected = (x + step["before"][row] * (0.1 / 127)).clamp(0, 1)
            assert torch.allclose(start, expected, rtol=0, atol=1e-6) == known
    assert new > 0


@pytest.mark.parametrize("kind", [TRADESTrainer, LocalBallTrainer])
def test_other_methods_start_there_too(kind: Any) -> None:
    options = TrainingOptions(seed=0, accumulation_steps=2, mixed_precision="bf16")
    trainer = kind(classifier(), threat=LINF, steps=1, start="previous", options=options)
    trainer.fit(X[:COUNT], Y[:COUNT], nb_epochs=2, batch_size=16, verbose=False)
    assert trainer.change_store.complete
    assert bool((trainer.change_store.changes.flatten(1) != 0).any(dim=1).all())


# -------------------------------------------------------------------------------------------- the image's own frame
@settings(max_examples=100)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(2, 6), st.integers(2, 6)),
    padding=st.integers(0, 4),
    last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_what_moved_with_an_image_moves_back_onto_the_same_pixels(
    size: tuple[int, int, int, int], padding: int, last: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    images, beneath = torch.rand(size) + 1, torch.rand(size) + 3
    if last:
        images, beneath = images.movedim(1, -1), beneath.movedim(1, -1)
    placement = Placement.draw(size[0], padding, images.device, channels_first=not last)
    moved = placement.move(images, 0.0)
    back = placement.move_back(moved, beneath)
    assert moved.shape == back.shape == images.shape
    cut = back > 2
    assert torch.equal(back[cut], beneath[cut])
    assert torch.equal(back[~cut], images[~cut])
    assert int((~cut).sum()) == int((moved > 0).sum())  # each pixel of a crop that is the image's came back
    # A change in the crop's frame lies where the crop's pixel was.
    again = placement.move(placement.move_back(moved + 10, torch.zeros_like(images)), 0.0)
    assert torch.equal(again, torch.where(moved > 0, moved + 10, 0))
    for row in range(size[0]):
        assert torch.equal(placement.select(slice(row, row + 1)).move(images[row : row + 1], 0.0)[0], moved[row])


@pytest.mark.parametrize(
    "options", [{"augmentation": "flip"}, {"augmentation": "crop-flip", "crop_padding": 2, "accumulation_steps": 3}]
)
def test_changes_follow_their_images_through_augmentation(options: dict[str, Any]) -> None:
    cut = 0
    for number, step in enumerate(fit(options=options).steps_seen):
        samples, x, xa = step["samples"], step["x"], step["xa"]
        changed = (127 * ((xa - x) / 0.1)).round()
        moves = torch.zeros(2, len(x), 1) if samples.placement.moves is None else samples.placement.moves
        for index, row in enumerate(samples.rows):
            mirrored, (down, right) = bool(samples.placement.mirrored[index]), moves[:, index].int().flatten().tolist()
            expected, start = step["before"][row].float(), x[index].clone()
            for i in range(8):
                for j in range(8):
                    top, left = i + down, (7 - j if mirrored else j) + right
                    if 0 <= top < 8 and 0 <= left < 8:
                        assert x[index, 0, i, j] == X[row, 0, top, left]
                        start[0, i, j] += 0.1 / 127 * expected[0, top, left]
                        expected[0, top, left] = changed[index, 0, i, j]
                    else:
                        cut += 1
            assert torch.equal(step["after"][row].float(), expected)
            if number >= 4 * options.get("accumulation_steps", 1):
                torch.testing.assert_close(step["start"][index], start.clamp(0, 1), rtol=0, atol=1e-6)
    assert (cut > 0) == (options["augmentation"] == "crop-flip")


# ------------------------------------------------------------------------------------------------ nothing forgets it
@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_a_resumed_run_equals_one_that_was_never_interrupted(threat: ThreatModel, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"start_noise": 0.5, "eps_warmup_epochs": 2, "overfitting": "rollback"}
    augmented = {"augmentation": "crop-flip", "crop_padding": 1, "drop_last": True}
    whole = fit(threat, epochs=4, **changes, options=augmented)
    for epochs in (1, 2, 4):
        kept = {**augmented, "checkpoint_dir": tmp_path, "resume": True}
        parts = fit(threat, epochs=epochs, **changes, options=kept)
    assert len(parts.history) == 4
    assert same(weights(whole.classifier), weights(parts.classifier))
    one, other = whole.state_dict(), parts.state_dict()
    assert one.keys() == other.keys() >= {"changes", "known", "good"}
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ValueError, match=r"^resume: .*start='previous'.*start='uniform'"):
        fit(threat, epochs=4, options=kept, overfitting="rollback", eps_warmup_epochs=2, start="uniform")


def test_settings_that_older_checkpoints_lack_are_described_only_where_they_differ() -> None:
    def describe(**changes: Any) -> str:
        trainer = LocalBallTrainer(classifier(), threat=LINF, eps_warmup_epochs=1, **changes)
        return describe_method(trainer, ())["settings of the method"]

    later = {"start_noise": 0.5, "local_weight_grows": True, "local_direction": "ascent", "smoothness": "logits"}
    assert all(name not in describe() for name in later)
    for name, value in later.items():
        start = {"start": "previous"} if name == "start_noise" else {}
        assert f"{name}={value!r}" in describe(**{name: value}, **start)


def test_a_rollback_brings_the_changes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def counts(watch: OverfittingWatch) -> tuple[int, int, int]:
        return (60, 60, 64) if len(watch.trainer.history) != 1 else (60, 1, 64)  # type: ignore[attr-defined]

    monkeypatch.setattr(OverfittingWatch, "count_resisting", counts)
    with pytest.warns(UserWarning, match="catastrophic overfitting"):
        trainer = fit(overfitting="rollback")
    assert [record.get("rolled_back") for record in trainer.history] == [None, 1, None]
    first, second, third = (trainer.steps_seen[4 * epoch : 4 * epoch + 4] for epoch in range(3))
    assert torch.equal(third[0]["before"], first[-1]["after"])
    assert not torch.equal(third[0]["before"], second[-1]["after"])


def test_the_watch_for_overfitting_starts_its_own_adversary_there() -> None:
    trainer = fit(epochs=2, overfitting="warn")
    last = trainer.steps_seen[-2]  # the last batch of an epoch has two samples, the watch keeps a larger one
    rows, store = last["samples"].rows, trainer.change_store
    assert store is not None
    expected = (X[rows] + store.changes[rows] * (0.1 / 127)).clamp(0, 1)
    torch.testing.assert_close(trainer.started, expected, rtol=0, atol=1e-6)
    assert trainer.samples is None


def test_a_new_run_and_a_copy_begin_without_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "ART_DATA_PATH", str(tmp_path))  # where ART pickles weights
    trainer = fit()
    for twin in (copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))):
        assert twin.change_store is None
        assert (twin.start, twin.start_noise) == ("previous", 0)
    again = fit()
    again.classifier.model.load_state_dict(plain().state_dict())
    again.steps_seen.clear()
    again.fit(X[:COUNT], Y[:COUNT], nb_epochs=1, batch_size=16, verbose=False)
    assert not bool(again.steps_seen[0]["before"].any())


# ------------------------------------------------------------------------------------------------------- refusals
def test_batches_of_unknown_samples_are_refused() -> None:
    trainer = PGDTrainer(classifier(), threat=LINF, start="previous")
    before = weights(trainer.classifier)
    with pytest.raises(ValueError, match=r"^start: got 'previous' for a loader,"):
        trainer.fit_loader(DataLoader(TensorDataset(X[:32], Y[:32]), batch_size=16), nb_epochs=1, verbose=False)
    assert same(before, weights(trainer.classifier))
    mixing = classifier(preprocessing_defences=[MixupPyTorch(num_classes=10)])
    with pytest.raises(ValueError, match=r"^start: got 'previous' .*MixupPyTorch"):
        PGDTrainer(mixing, threat=LINF, start="previous")


def test_state_of_another_kind_is_refused() -> None:
    store = ChangeStore("Linf", 3, (2,), torch.device("cpu"))
    with pytest.raises(ValueError, match="'changes'"):
        store.load_state_dict({"known": store.known})
    with pytest.raises(ValueError, match=r"torch\.float16"):
        store.load_state_dict(ChangeStore("L2", 3, (2,), torch.device("cpu")).state_dict())
    store.write(Samples(torch.tensor([2, 0])), torch.tensor([[0.5, -1.0], [2.0, 0.0]]), None)
    assert store.changes.tolist() == [[127, 0], [0, 0], [64, -127]]
    assert store.known.tolist() == [True, False, True]
    other = ChangeStore("Linf", 3, (2,), torch.device("cpu"))
    other.load_state_dict(store.state_dict())
    assert torch.equal(other.changes, store.changes)
    assert not other.complete


def test_a_checkpoint_of_before_these_settings_is_continued(tmp_path: Path) -> None:
    def train(epochs: int, **kept: Any) -> dict[str, Tensor]:
        trained = classifier(plain())
        options = TrainingOptions(seed=0, **kept)
        trainer = LocalBallTrainer(trained, threat=LINF, options=options)
        trainer.fit(X[:COUNT], Y[:COUNT], nb_epochs=epochs, batch_size=16, verbose=False)
        return weights(trained)

    kept = {"checkpoint_dir": tmp_path, "resume": True}
    train(1, **kept)
    saved = load_state(tmp_path / "training.pt")
    for name in LATER_PARAMETERS:
        del saved["settings"][name]
    save_state(tmp_path / "training.pt", saved)
    assert same(train(3, **kept), train(3))
