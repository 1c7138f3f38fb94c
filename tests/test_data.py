import gzip
import pickle

import numpy as np
import pytest
from art import config
from art.utils import load_cifar10, load_mnist

from art_robust_plugins.data import load_data

RNG = np.random.default_rng(0)


@pytest.fixture
def art_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "ART_DATA_PATH", str(tmp_path / "art"))
    (tmp_path / "art").mkdir()
    return tmp_path / "art"


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr("six.moves.urllib.request.urlretrieve", fail)


def assert_contract(data, shape, nb_classes):
    assert data.input_shape == shape
    assert data.nb_classes == nb_classes
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        assert x.min() >= 0
        assert x.max() <= 1
        assert y.dtype == np.int64
        assert y.shape == x.shape[:1]
        assert 0 <= y.min() <= y.max() < nb_classes


def test_digits_are_split_evenly_and_the_same_each_time(digits):
    assert_contract(digits, (1, 8, 8), 10)
    assert (len(digits.x_train), len(digits.x_test)) == (1437, 360)
    assert digits.x_train.max() == 1
    counts = np.bincount(digits.y_test)
    assert counts.min() >= 34
    assert counts.max() <= 38
    again = load_data("digits")
    assert np.array_equal(again.x_test, digits.x_test)
    both = {image.tobytes() for image in digits.x_train} & {image.tobytes() for image in digits.x_test}
    assert not both


def test_mnist_is_what_art_loads(art_folder):
    arrays = {
        "x_train": RNG.integers(0, 256, (30, 28, 28), dtype=np.uint8),
        "y_train": np.arange(30, dtype=np.uint8) % 10,
        "x_test": RNG.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        "y_test": np.arange(10, dtype=np.uint8),
    }
    np.savez(art_folder / "mnist.npz", **arrays)
    data = load_data("mnist")
    assert_contract(data, (1, 28, 28), 10)
    (x_train, y_train), (x_test, y_test), _, _ = load_mnist()
    np.testing.assert_allclose(data.x_train, x_train.transpose(0, 3, 1, 2), atol=1e-7)
    np.testing.assert_allclose(data.x_test, x_test.transpose(0, 3, 1, 2), atol=1e-7)
    assert np.array_equal(data.y_train, y_train.argmax(axis=1))
    assert np.array_equal(data.y_test, y_test.argmax(axis=1))


def test_cifar10_is_what_art_loads(art_folder):
    folder = art_folder / "cifar-10-batches-py"
    folder.mkdir()
    # Each batch of the original has this size, and ART asks for it.
    batch = {
        b"data": RNG.integers(0, 256, (10_000, 3072), dtype=np.uint8),
        b"labels": [int(label) for label in RNG.integers(0, 10, 10_000)],
    }
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(batch))
    data = load_data("cifar10")
    assert_contract(data, (3, 32, 32), 10)
    assert len(data.x_train) == 50_000
    _, (x_test, y_test), _, _ = load_cifar10(raw=True)
    np.testing.assert_allclose(data.x_test[:100], x_test[:100].transpose(0, 3, 1, 2) / 255, atol=1e-7)
    assert np.array_equal(data.y_test, y_test)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("name", "file"), [("mnist", "mnist.npz"), ("cifar10", "cifar-10-batches-py")])
def test_missing_data_say_which_file_belongs_where(art_folder, name, file):
    with pytest.raises(FileNotFoundError) as refusal:
        load_data(name)
    assert str(refusal.value).startswith(f"{name}: {file} is not in {art_folder}")


@pytest.mark.usefixtures("no_network")
def test_loading_leaves_the_verification_of_certificates_alone(art_folder):
    import ssl

    before = ssl._create_default_https_context
    with pytest.raises(FileNotFoundError):
        load_data("mnist")
    assert ssl._create_default_https_context is before


def test_damaged_data_are_named(art_folder):
    (art_folder / "mnist.npz").write_bytes(gzip.compress(b"not an archive"))
    with pytest.raises(ValueError, match=r"mnist\.npz: "):
        load_data("mnist")


def arrays(x_train, x_test=None, **changes):
    x_test = x_train[:2] if x_test is None else x_test
    labels = {"y_train": np.arange(len(x_train)) % 3, "y_test": np.arange(len(x_test)) % 3}
    return {"x_train": x_train, "x_test": x_test, **labels, **changes}


BYTES = RNG.integers(0, 256, (6, 3, 8, 5), dtype=np.uint8)
FLOATS = RNG.random((6, 3, 8, 5), dtype=np.float32)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (BYTES, BYTES / 255),
        (BYTES.transpose(0, 2, 3, 1), BYTES / 255),
        (FLOATS, FLOATS),
        (FLOATS.astype(np.float64).transpose(0, 2, 3, 1), FLOATS),
        (BYTES[:, 0], BYTES[:, :1] / 255),
    ],
)
def test_npz_files_of_each_form(tmp_path, x, expected):
    np.savez(tmp_path / "d.npz", **arrays(x))
    data = load_data(tmp_path / "d.npz")
    assert_contract(data, expected.shape[1:], 3)
    np.testing.assert_allclose(data.x_train, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"x": FLOATS}, "no x_train but x,"),
        (
            arrays(FLOATS, y_train=np.array([{}] * 6, dtype=object)),
            "Object arrays cannot be loaded when allow_pickle=False",
        ),
        (arrays(np.zeros((6, 3, 8, 3), np.uint8)), "x_train: got the shape (6, 3, 8, 3),"),
        (arrays(np.zeros((6, 5, 8, 5), np.uint8)), "x_train: got the shape (6, 5, 8, 5), where neither order fits"),
        (arrays(FLOATS * 255), f"x_train: got floats in [{(FLOATS * 255).min():g}, {(FLOATS * 255).max():g}],"),
        (arrays(FLOATS * np.nan), "x_train: got floats in [nan, nan],"),
        (arrays(np.zeros((6, 3, 8, 5), np.int64)), "x_train: got int64 (6, 3, 8, 5),"),
        (arrays(FLOATS[:0]), "x_train: got float32 (0, 3, 8, 5),"),
        (arrays(FLOATS, FLOATS[:, :1]), "x_test: got images (1, 8, 5),"),
        (arrays(FLOATS, y_train=np.arange(5)), "y_train: got 5 labels for 6 images,"),
        (arrays(FLOATS, y_train=-np.arange(6)), "y_train: got int64 (6,),"),
        (arrays(FLOATS, y_test=np.zeros((2, 3))), "y_test: got float64 (2, 3),"),
    ],
)
def test_npz_files_that_are_not_data_are_refused(tmp_path, content, sentence):
    np.savez(tmp_path / "d.npz", **content)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        load_data(tmp_path / "d.npz")
    assert str(refusal.value).startswith(str(tmp_path / "d.npz"))
    assert sentence in str(refusal.value)


def test_an_npz_file_of_test_arrays_alone_is_enough_where_nothing_is_trained(tmp_path):
    x, y = np.zeros((3, 5, 5, 3), np.uint8), np.array([0, 2, 1])
    np.savez(tmp_path / "d.npz", x_test=x, y_test=y)
    data = load_data(tmp_path / "d.npz", test_only=True)
    assert data.x_test.shape == (3, 3, 5, 5)
    assert data.y_test.tolist() == y.tolist()
    assert (len(data.x_train), len(data.y_train), data.input_shape) == (0, 0, (3, 5, 5))
    with pytest.raises(ValueError, match="x_train"):
        load_data(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", x_test=x, y_test=y[:2])
    with pytest.raises(ValueError, match="y_test: got 2 labels for 3 images"):
        load_data(tmp_path / "d.npz", test_only=True)


def test_files_that_are_no_npz(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"d\.npz: no such file,"):
        load_data(tmp_path / "d.npz")
    (tmp_path / "d.npz").write_bytes(pickle.dumps({"x_train": 1}))
    with pytest.raises(ValueError, match=r"d\.npz: .*,"):
        load_data(tmp_path / "d.npz")
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04cut short")
    with pytest.raises(ValueError, match=r"d\.npz: .*,"):
        load_data(tmp_path / "d.npz")


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match=r"^name: got .*'cifar-10', .*'cifar10'\?"):
        load_data("cifar-10")
