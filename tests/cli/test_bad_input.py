"""Bad input gets one sentence and exit code 2."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from art_robust_plugins.cli.app import LoadedCommands
from art_robust_plugins.cli.translation import translate

BAD = [
    (["train", "bnag", "--out", "{new}"], "error: METHOD: got 'bnag',"),
    (["train", "lipschitz-certifier", "--out", "{new}"], "METHOD: 'lipschitz-certifier' is an ART estimator,"),
    (["train", "bang", "--data", "minst", "--out", "{new}"], "'mnist'?"),
    (["train", "bang", "--model", "lenett", "--out", "{new}"], "'lenet'?"),
    (["train", "bang", "--model", "lenet", "--out", "{new}"], "error: --model: got "),
    (["train", "bang", "--set", "beta", "--out", "{new}"], "error: --set: got 'beta',"),
    (["train", "bang", "--set", "bta=1", "--out", "{new}"], "error: --set bta: 'bang'"),
    (["train", "bang", "--set", "beta=-1", "--out", "{new}"], "error: --set beta: got -1,"),
    (["train", "bang", "--set", "beta=0.4", "--set", "beta=0.5", "--out", "{new}"], "--set: got beta twice,"),
    (["train", "bang", "--set", "ema_decay=0.9", "--out", "{new}"], "--set: got 'ema_decay', which 'bang' does not "),
    (["train", "bang", "--set", "max_gradient_norm=1", "--out", "{new}"], "expected --max-gradient-norm."),
    (["train", "bang", "--set", "keep_best=true", "--out", "{new}"], "expected --keep-best."),
    (["train", "pgd", "--eps", "0.1", "--set", "step_size=2", "--out", "{new}"], "error: --set step_size: got 2 for"),
    (["train", "pgd", "--eps", "0.1", "--set", "step_size=2/0", "--out", "{new}"], "--set step_size: got '2/0',"),
    (["train", "bang", "--eps", "8/0", "--out", "{new}"], "error: --eps: got '8/0',"),
    (["train", "bang", "--norm", "L2", "--out", "{new}"], "error: --norm: got L2 without --eps,"),
    (["train", "bang", "--with", "bnag", "--out", "{new}"], "--with: got 'bnag',"),
    (["train", "bang", "--with", "bang", "--with", "bang", "--out", "{new}"], "--with: got bang twice,"),
    (["train", "bang", "--set", "bang.beta=1", "--out", "{new}"], "--set: got bang.beta,"),
    (["train", "trades", "--out", "{new}"], "--eps: got none,"),
    (["train", "bang", "--lr", "0", "--out", "{new}"], "error: --lr: got 0.0,"),
    (["train", "bang", "--optimizer", "adam", "--momentum", "0.5", "--out", "{new}"], "error: --momentum: got 0.5 "),
    (["train", "bang", "--set", "threat=0.1", "--out", "{new}"], "error: --set: threat "),
    (["train", "bang", "--set", 'layers={{"*": 3}}', "--out", "{new}"], "error: --set layers: got 3 for '*',"),
    (["train", "bang", "--compile", "fast", "--out", "{new}"], "error: --compile: got 'fast',"),
    (["train", "bang", "--ema-decay", "1", "--out", "{new}"], "error: --ema-decay: got 1.0,"),
    (["train", "bang", "--schedule", "linear", "--out", "{new}"], "error: --schedule: got 'linear',"),
    (["train", "bang", "--schedule", "piecewise", "--out", "{new}"], "error: --milestones: got () "),
    (
        ["train", "bang", "--milestone", "3", "--out", "{new}"],
        "error: --milestones: got [3.0] ",
    ),
    (
        ["train", "bang", "--schedule", "constant", "--warmup", "1", "--out", "{new}"],
        "error: --warmup-epochs: got 1.0 ",
    ),
    (["train", "bang", "--clip", "0", "--out", "{new}"], "error: --max-gradient-norm: got 0.0,"),
    (["train", "bang", "--accumulate", "0", "--out", "{new}"], "error: --accumulation-steps: got 0,"),
    (["train", "bang", "--augment", "crop", "--out", "{new}"], "error: --augmentation: got 'crop',"),
    (["train", "bang", "--keep-best", "--validation", "0", "--out", "{new}"], "error: --keep-best: got "),
    (
        ["train", "bang", "--validation", "10", "--validation-share", "0.2", "--out", "{new}"],
        "error: --validation-share: got 0.2 ",
    ),
    (["train", "bang", "--validation-share", "1", "--out", "{new}"], "error: --validation-share: got 1,"),
    (["train", "trades", "--set", "eps=8", "--out", "{new}"], "error: --set: got 'eps',"),
    (["train", "bang", "--device", "gpu", "--out", "{new}"], "error: --device: got 'gpu',"),
    (["train", "bang", "--norm", "L7", "--eps", "0.1", "--out", "{new}"], "error: --norm: got 'L7',"),
    (["train", "bang", "--lr", "nan", "--out", "{new}"], "error: --lr: got nan,"),
    (["train", "bang", "--lr", "inf", "--out", "{new}"], "error: --lr: got inf,"),
    (["train", "bang", "--seed", "99999999999", "--out", "{new}"], "error: --seed: got '99999999999',"),
    (["evaluate", "{trained}", "--seed", "99999999999", "--eps", "0.1"], "error: --seed: got '99999999999',"),
    (["evaluate", "{trained}", "--eps", "0,1"], "error: --eps: got '0,1',"),
    (["evaluate", "{trained}", "--eps", "1e-300"], "error: --eps: got 1e-300 "),
    (["evaluate", "{trained}", "--eps", "0.1", "--attacks", "foo"], "error: --attacks: got 'foo',"),
    (["methods", "foo"], "error: NAME: got 'foo',"),
    (["methods", "trads"], "'trades'?"),
    (["attack"], "error: COMMAND: got 'attack',"),
    (["train", "bang", "--validation", "5000", "--out", "{new}"], "error: --validation: got 5000 of 1437"),
    (["train", "bang", "--out", "{trained}"], "error: --out: "),
    (["evaluate", "{new}", "--eps", "0.1"], "error: RUN: got "),
    (["evaluate", "{trained}", "--eps", "0.1", "--attacks", "standrd"], "'standard'?"),
    (["evaluate", "{trained}", "--norm", "L2"], "error: --eps: got none, "),
    (["certify", "{trained}", "--norm", "L2"], "error: --eps: got none, "),
    (["evaluate", "{trained}", "--norm", "L3", "--eps", "1"], "error: --norm: got 'L3',"),
    (["evaluate", "{trained}", "--mean", "0.5", "--eps", "0.1"], "error: --mean: got 0.5 "),
    (["evaluate", "{trained}", "--robustbench", "{new}"], "error: --robustbench: got the data digits,"),
    (["certify", "{trained}", "--eps", "big"], "error: --eps: got 'big',"),
    (["certify", "{new}", "--eps", "0.1"], "error: RUN: got "),
    (["train", "bang", "--model-set", "depth", "--out", "{new}"], "error: --model-set: got 'depth',"),
    (
        ["train", "bang", "--model-set", "depth=4", "--out", "{new}"],
        "error: --model-set depth: the network 'small-cnn' ",
    ),
    (
        ["train", "bang", "--model-set", "hidden=4", "--model-set", "hidden=8", "--out", "{new}"],
        "error: --model-set: got hidden twice,",
    ),
    (["train", "bang", "--model-set", "hiden=4", "--out", "{new}"], "'hidden'?"),
    (["train", "bang", "--model-set", "input_shape=4", "--out", "{new}"], "error: --model-set: got input_shape,"),
    (["evaluate", "{pickle}", "--eps", "0.1"], "weights.safetensors"),
    (["export", "{trained}", "--batch", "all"], "--batch: got 'all',"),
    (["export", "{trained}", "--out", "{new}"], "error: --out: got 'new', "),
    (["export", "{trained}", "--format", "torchscript", "--batch", "4"], "error: --batch: got 4 "),
    (["export", "{pickle}"], "weights.safetensors"),
    (["benchmark"], "NAME: got none,"),
    (["benchmark", "mnits"], "NAME: got 'mnits',"),
    (["benchmark", "{new}/own.toml"], "own.toml: no such file,"),
    (["benchmark", "digits", "--quick", "--record", "{new}"], "--record: got "),
    (["benchmark", "digits", "--out", "{trained}"], "error: --out: "),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_gets_one_sentence(
    run, trained_run: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:  # type: ignore[no-untyped-def]
    broken = tmp_path / "pickle"
    broken.mkdir()
    (broken / "classifier.json").write_bytes((trained_run / "classifier.json").read_bytes())
    (broken / "weights.safetensors").write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    places = {"new": tmp_path / "new", "trained": trained_run, "pickle": broken}
    code, text = run(*[argument.format(**places) for argument in arguments])
    assert code == 2
    assert sentence in " ".join(text.split())
    assert "Traceback" not in text
    assert not (tmp_path / "new").exists()


def test_inside_a_sentence_only_what_names_an_argument_is_renamed() -> None:
    commands = LoadedCommands()
    for command, told, shown in (
        (
            "train",
            "loss: got inf; try max_gradient_norm=1, or lr=0.1.",
            "loss: got inf; try --max-gradient-norm 1, or --lr 0.1.",
        ),
        ("train", "resume: got True without checkpoint_dir.", "--resume: got True without --out."),
        ("evaluate", "a/x.json: eps: got 1 data, model and norm", None),
        ("evaluate", "RUN: got PyTorchClassifier(..., device=...) and batch_size(3)", None),
        ("evaluate", "x: got 254, expected bounds=(0, 255).", "--data: got 254, expected --bounds 0,255."),
        ("report", "eps: got 1", None),
    ):
        assert translate(told, commands[command]) == (shown or told)


def test_debug_shows_where_an_error_came_from(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="METHOD: got 'bnag'"):
        run("--debug", "train", "bnag", "--out", tmp_path / "new")


def test_radii_in_other_units_are_refused_by_every_command(run, trained_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for arguments in (
        ("train", "local-ball", "--eps", "8", "--out", tmp_path / "train"),
        ("train", "standard", "--eps", "8", "--validation", "50", "--out", tmp_path / "train"),
        ("evaluate", trained_run, "--eps", "0.1", "--eps", "8", "--out", tmp_path / "evaluate"),
        ("certify", trained_run, "--eps", "0.5", "--eps", "8", "--out", tmp_path / "certify"),
    ):
        code, text = run(*arguments)
        assert code == 2
        assert "error: --eps: got 8 " in text
    assert not any(tmp_path.iterdir())


def test_a_path_that_is_no_run_gets_the_way_out(run, trained_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(trained_run, tmp_path / "bang", ignore=shutil.ignore_patterns("evaluations"))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "training.pt").touch()
    (tmp_path / "weights.pt").touch()
    for given, sentence in (
        ("bnag", "'bang'?"),
        ("half", "--resume"),
        ("weights.pt", "with --weights"),
        ("", "it holds the runs bang"),
    ):
        for command in (["evaluate"], ["certify"], ["export"], ["evaluate", trained_run, "--transfer"]):
            code, text = run(*command, tmp_path / given)
            assert code == 2
            assert text.startswith(f"error: {'--transfer' if len(command) > 1 else 'RUN'}: got ")
            assert sentence in " ".join(text.split())
    code, text = run("train", "bang", "--out", tmp_path / "half")
    assert code == 2
    assert "--resume" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
@pytest.mark.parametrize("command", ["train", "evaluate", "certify", "benchmark", "demo"])
def test_commands_refuse_a_device_that_is_not_there(  # type: ignore[no-untyped-def]
    run, trained_run: Path, tmp_path: Path, command: str
) -> None:
    subject = {"train": ["bang"], "benchmark": ["digits"], "demo": []}.get(command, [trained_run])
    code, text = run(command, *subject, "--device", "cuda", "--out", tmp_path / "new")
    assert (code, "error: --device: got cuda" in text) == (2, True)
    assert not (tmp_path / "new").exists()


USAGE = [
    (["train"], "METHOD: got none,"),
    (["train", "bang"], "--out: got none,"),
    (["train", "bang", "--out"], "--out: got no value,"),
    (["train", "bang", "--out", "{new}", "--epochs", "2.5"], "--epochs: got '2.5',"),
    (["train", "bang", "--out", "{new}", "--epochs", "0"], "--epochs: got '0',"),
    (["train", "bang", "--out", "{new}", "--lr", "fast"], "--lr: got 'fast',"),
    (["train", "bang", "--out", "{new}", "--milestones", "1", "--milestones", "x"], "--milestones: got 'x',"),
    (["train", "bang", "--out", "{new}", "--optimizer", "sgdd"], "--optimizer: got 'sgdd',"),
    (["train", "bang", "--outt", "{new}"], "--outt: got an unknown option,"),
    (["train", "bang", "more", "--out", "{new}"], "art-robust train: got the word 'more' "),
    (["evaluate", "{new}", "--batch-size", "0"], "--batch-size: got '0',"),
    (["train", "bang", "--quiet=3", "--out", "{new}"], "--quiet: got '3',"),
    (["report"], "RUN: got none,"),
    (["--foo", "report"], "--foo: got an unknown option,"),
    (["--version=3"], "--version: got '3',"),
    (["train", "bang", "--out", ""], "--out: got '',"),
    (["report", "{new}", ""], "RUN: got '',"),
    (["help"], "COMMAND: got 'help',"),
    (["trian"], "COMMAND: got 'trian',"),
]


@pytest.mark.parametrize(("words", "sentence"), USAGE)
def test_words_that_a_command_does_not_take_are_refused_in_one_sentence(run, tmp_path, words, sentence):
    code, text = run(*(word.format(new=tmp_path / "new") for word in words))
    assert code == 2
    assert text.startswith(f"error: {sentence}")
    assert text.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("words", [["--quiet", "certify", "nothere"], ["certify", "nothere", "--quiet"]])
def test_options_of_all_commands_stand_before_the_command_or_after_it(run, words):
    assert run(*words)[1].startswith("error: RUN: got nothere")
    assert run("certify", "--version") == run("--version")
    with pytest.raises(ValueError, match=r"^--out: got no value"):
        run("certify", "--out", "--debug")
    with pytest.raises(OSError, match="nothere"):
        run(*words, "--debug")
