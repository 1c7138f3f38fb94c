"""The banded factorisation that proves norms: its blocks, its bound, its settings, and the folder of kept norms."""

import json
import math

import pytest
import torch

from art_robust_plugins.files.sealed import write_sealed
from art_robust_plugins.lipschitz import Convolution, configure_proofs, lower_estimate
from art_robust_plugins.lipschitz.norms import kept
from art_robust_plugins.lipschitz.norms.banded import PANEL, prove_level
from art_robust_plugins.lipschitz.norms.gram import GramMatrix
from art_robust_plugins.lipschitz.norms.lanczos import largest_eigenvalue
from art_robust_plugins.lipschitz.norms.layout import list_layouts
from art_robust_plugins.lipschitz.norms.reads import split_axis

# inputs, outputs, kernel, size, settings
GEOMETRIES = [
    (2, 3, (3,), (11,), {"padding": 1}),
    (2, 3, (4,), (12,), {"padding": 1, "stride": 2}),
    (2, 2, (3, 3), (5, 6), {"padding": 1}),
    (3, 2, (3, 2), (7, 5), {"padding": [(2, 0), (0, 1)], "stride": (2, 1)}),
    (2, 2, (3, 3), (6, 7), {"padding": 2, "dilation": 2}),
    (2, 3, (2, 2), (6, 6), {"stride": 2}),
    (2, 2, (1, 1), (4, 4), {}),
    (2, 2, (3, 3), (5, 5), {"padding": 1, "padding_mode": "circular"}),
    (2, 2, (3, 3), (5, 6), {"padding": 2, "padding_mode": "reflect"}),
    (2, 2, (3, 3), (5, 6), {"padding": 2, "padding_mode": "replicate"}),
    (2, 2, (3, 3), (4, 5), {"padding": 1, "stride": 2, "output_padding": 1, "transposed": True}),
    (1, 2, (3, 2, 3), (4, 3, 3), {"padding": 1}),
    (2, 1, (2, 3, 1), (3, 4, 3), {"stride": (1, 2, 1), "padding": (1, 1, 0)}),
]


def make_operator(geometry, seed=0):
    inputs, outputs, kernel, size, settings = geometry
    channels = (inputs, outputs) if settings.get("transposed") else (outputs, inputs)
    weight = torch.randn(*channels, *kernel, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Convolution(weight, size, **settings)


def dense_matrix(operator):
    """The operator as torch applies it, [outputs, inputs]."""
    basis = torch.eye(math.prod(operator.input_shape), dtype=torch.float64).view(-1, *operator.input_shape)
    return operator.apply(basis).flatten(1).t()


def assemble(matrix):
    """All blocks of a Gram matrix side by side."""
    starts = [0]
    for size in matrix.count_unknowns():
        starts.append(starts[-1] + size)
    whole = torch.zeros(starts[-1], starts[-1], dtype=torch.float64)
    for row in range(matrix.blocks):
        for column in range(row + 1):
            block = matrix.make_block(row, column)
            whole[starts[row] : starts[row + 1], starts[column] : starts[column + 1]] = block
    return whole.tril() + whole.tril(-1).t()


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_blocks_from_taps_have_the_eigenvalues_of_the_dense_product(geometry, side):
    operator = make_operator(geometry)
    dense = dense_matrix(operator)
    if operator.transposed:
        dense = dense.t()
    gram = dense.t() @ dense if side == "inputs" else dense @ dense.t()
    truth = torch.linalg.eigvalsh(gram)
    axes = [split_axis(operator, axis, side) for axis in range(len(operator.input_shape) - 1)]
    weight = operator.weight if side == "inputs" else operator.weight.transpose(0, 1)
    largest = []
    for product in torch.cartesian_prod(*[torch.arange(len(axis)) for axis in axes]).view(-1, len(axes)).tolist():
        parts = [axis[index] for axis, index in zip(axes, product, strict=True)]
        spectra = []
        for layout in list_layouts(weight.shape[1], weight.shape[0], parts, PANEL):
            matrix = GramMatrix(weight, parts, layout)
            assert sum(matrix.count_unknowns()) == matrix.size
            spectra.append(torch.linalg.eigvalsh(assemble(matrix)))
            if layout.blocks == 1:  # it is multiplied as a whole: both triangles count
                whole = GramMatrix(weight, parts, layout).make_dense()
                torch.testing.assert_close(whole, whole.t(), rtol=1e-12, atol=1e-12)
                torch.testing.assert_close(torch.linalg.eigvalsh(whole), spectra[-1], rtol=1e-12, atol=1e-12)
            vector = torch.randn(matrix.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            for _ in range(60):
                vector = matrix.multiply(vector / torch.linalg.vector_norm(vector))
            assert 0.8 * spectra[0][-1] <= torch.linalg.vector_norm(vector) <= spectra[0][-1] * (1 + 1e-12)
        for spectrum in spectra[1:]:
            torch.testing.assert_close(spectrum, spectra[0], rtol=1e-12, atol=1e-12)
        # Each eigenvalue of a part is one of the whole.
        distances = (truth[None] - spectra[0][:, None]).abs().amin(dim=1)
        assert float(distances.max()) <= 1e-12 * float(truth[-1])
        largest.append(float(spectra[0][-1]))
    assert max(largest) == pytest.approx(float(truth[-1]), rel=1e-12)


class Blocks:
    """A dense symmetric matrix as the factorisation wants it."""

    def __init__(self, matrix, sizes):
        self.matrix, self._sizes = matrix, sizes

    def count_unknowns(self):
        return self._sizes

    def make_block(self, row, column):
        rows, columns = (slice(sum(self._sizes[:i]), sum(self._sizes[: i + 1])) for i in (row, column))
        return self.matrix[rows, columns].clone()


def banded_matrix(sizes, bandwidth, seed=0):
    """A positive definite matrix of this band."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    numbers = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    near = (numbers[:, None] - numbers).abs() <= bandwidth
    root = torch.randn(count, count, generator=generator, dtype=torch.float64).tril() * near
    return root @ root.t()


@pytest.mark.parametrize(
    ("sizes", "bandwidth"),
    [([5], 0), ([200], 0), ([3, 3, 3, 2], 1), ([40] * 6 + [7], 2), ([150, 150, 60], 1), ([4] * 5, 4)],
)
def test_a_level_is_proven_just_above_the_largest_eigenvalue_and_never_below(sizes, bandwidth):
    gram = banded_matrix(sizes, bandwidth)
    largest = float(torch.linalg.eigvalsh(gram)[-1])
    for above in (1e-9, 1e-6, 1e-2, 1.0):
        slack = prove_level(Blocks(gram, sizes), bandwidth, largest * (1 + above))
        assert slack is not None
        assert 0 < slack <= 1e-9 * largest
    for below in (1e-9, 1e-6, 1e-2, 0.5, 1.0):
        assert prove_level(Blocks(gram, sizes), bandwidth, largest * (1 - below)) is None


def test_a_solver_that_errs_does_not_prove_too_much(monkeypatch):
    """What LAPACK and BLAS return is measured, not trusted."""
    sizes, bandwidth = [30, 30, 30], 1
    gram = banded_matrix(sizes, bandwidth)
    largest = float(torch.linalg.eigvalsh(gram)[-1])
    true = torch.linalg.solve_triangular
    monkeypatch.setattr(
        torch.linalg, "solve_triangular", lambda *values, **options: true(*values, **options) * (1 - 1e-3)
    )
    slack = prove_level(Blocks(gram, sizes), bandwidth, largest * 0.9999)
    assert slack is None or largest * 0.9999 + slack >= largest
    high = prove_level(Blocks(gram, sizes), bandwidth, largest * 1.5)
    assert high is not None
    assert high > 1e-6 * largest
    factorise = torch.linalg.cholesky_ex

    def regularise(matrix):
        """A factorisation that never fails."""
        shift = float(torch.linalg.eigvalsh(matrix)[0])
        factor, _ = factorise(matrix + max(0.0, 1e-3 - shift) * torch.eye(len(matrix), dtype=matrix.dtype))
        return factor, torch.tensor(0)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", regularise)
    for share in (0.5, 0.9, 0.99):
        slack = prove_level(Blocks(gram, sizes), bandwidth, largest * share)
        assert slack is None or largest * share + slack >= largest


def test_numbers_that_are_not_finite_prove_nothing():
    gram = banded_matrix([4, 4], 1)
    for value in (math.nan, math.inf):
        broken = gram.clone()
        broken[5, 2] = broken[2, 5] = value
        assert prove_level(Blocks(broken, [4, 4]), 1, 100.0) is None


@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "settings"),
    [
        (20, 20, 16, {"padding": 1}),  # 5120 inputs: above what was factored as a whole
        (12, 24, 24, {"padding": 1, "stride": 2}),
        (24, 24, 16, {"padding": 2, "dilation": 2}),
        (16, 16, 18, {"padding": 1, "padding_mode": "reflect"}),
    ],
)
def test_wide_layers_are_proven_within_a_hundredth_of_a_percent(inputs, outputs, size, settings):
    weight = torch.randn(outputs, inputs, 3, 3, generator=torch.Generator().manual_seed(0))
    operator = Convolution(weight, (size, size), **settings)
    bound = operator.upper_bound()
    exact = operator.with_weight(weight.double())

    def multiply(vector):
        return exact.adjoint(exact.apply(vector.view(1, *exact.input_shape))).flatten()

    below = math.sqrt(largest_eigenvalue(multiply, torch.empty(inputs * size**2, dtype=torch.float64))[0])
    assert bound.method == "cholesky"
    assert below <= bound.value <= below * (1 + 1e-4)


@pytest.mark.parametrize(
    ("kernel", "size", "settings"),
    [
        ((101,), (120,), {"padding": 50}),  # as one matrix
        ((1,), (3000,), {}),
        ((5,), (3000,), {"stride": 5}),
        ((3, 1), (40, 3), {"padding": (1, 0), "stride": (3, 2)}),
    ],
)
def test_long_kernels_and_axes_that_fall_apart_are_proven_at_once(kernel, size, settings):
    weight = torch.randn(2, 3, *kernel, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    operator = Convolution(weight, size, **settings)
    below = float(lower_estimate(operator, steps=400)[0])
    bound = operator.upper_bound()
    assert bound.method in ("cholesky", "grid")
    assert below * (1 - 1e-9) <= bound.value <= below * (1 + 1e-4)


# Settings


def test_limits_of_operations_and_memory_leave_the_bound_on_the_grid():
    operator = make_operator((2, 2, (3, 3), (6, 6), {"padding": 1}))
    proven = operator.upper_bound()
    assert proven.method == "cholesky"
    for limit in ({"operations": 10}, {"memory": 1000}, {"operations": 0}):
        with configure_proofs(**limit):
            coarse = operator.upper_bound()
        assert coarse.method == "grid"
        assert coarse.value > proven.value
    assert operator.upper_bound() == proven
    with configure_proofs(operations=10):
        explicit = Convolution(operator.weight, (6, 6), padding=1, cholesky_limit=72)
        assert explicit.upper_bound() == proven
    assert Convolution(operator.weight, (6, 6), padding=1, cholesky_limit=71).upper_bound().method == "grid"


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("operations", -1),
        ("operations", math.nan),
        ("operations", "x"),
        ("memory", True),
        ("memory", -1),
        ("cache_dir", 3),
        ("cache_dir", ""),
        ("verbose", "yes"),
    ],
)
def test_settings_that_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"{argument}: got {value!r}"), configure_proofs(**{argument: value}):
        pass


# Kept norms


@pytest.fixture
def operator():
    """One whose proof costs enough to be kept."""
    weight = torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    return Convolution(weight, (16, 16), padding=1)


def test_a_kept_norm_is_read_back_for_the_same_weight_and_geometry_alone(operator, tmp_path, monkeypatch):
    folder = tmp_path / "norms"
    with configure_proofs(cache_dir=folder):
        first = operator.upper_bound()
    assert first == operator.upper_bound()
    (file,) = folder.iterdir()

    def refuse(*values, **options):
        raise AssertionError("it was proven anew")

    monkeypatch.setattr("art_robust_plugins.lipschitz.norms.cholesky.prove_level", refuse)
    with configure_proofs(cache_dir=folder):
        assert operator.upper_bound() == first
        assert operator.with_weight(4 * operator.weight).upper_bound().value == pytest.approx(4 * first.value, rel=1e-8)
        for other in (
            operator.with_weight(operator.weight * (1 + 1e-6)),
            Convolution(operator.weight, (16, 17), padding=1),
            Convolution(operator.weight, (16, 16), padding=1, padding_mode="reflect"),
        ):
            with pytest.raises(AssertionError, match="anew"):
                other.upper_bound()
    assert list(folder.iterdir()) == [file]


def test_kept_norms_that_cannot_be_bounds_are_refused(operator, tmp_path):
    with configure_proofs(cache_dir=tmp_path):
        operator.upper_bound()
        (file,) = tmp_path.iterdir()
        record = json.loads(file.read_text())
        file.write_text(json.dumps({**record, "bound": record["bound"] / 2}))
        with pytest.raises(ValueError, match="sha256"):
            operator.upper_bound()
        file.write_text(json.dumps(record))
        operator.upper_bound()
        write_sealed(file, {"format": record["format"], "key": "another", "bound": record["bound"]})
        with pytest.raises(ValueError, match="key: got 'another'"):
            operator.upper_bound()
        for bound in (record["bound"] / 2, "x", True, None):
            write_sealed(file, {"format": record["format"], "key": record["key"], "bound": bound})
            with pytest.raises(ValueError, match=f"bound: got {bound!r}"):
                operator.upper_bound()


def test_a_kept_norm_of_another_proof_is_proven_anew(operator, tmp_path, monkeypatch):
    with configure_proofs(cache_dir=tmp_path):
        first = operator.upper_bound()
        monkeypatch.setattr(kept, "FORMAT", "art-robust-plugins norm 0")
        assert operator.upper_bound() == first
    assert len(list(tmp_path.iterdir())) == 2


def test_a_kept_norm_that_was_cut_off_is_refused_with_the_way_out(operator, tmp_path):
    with configure_proofs(cache_dir=tmp_path):
        operator.upper_bound()
        (file,) = tmp_path.iterdir()
        for content in ("", file.read_text()[:20], "[]", "{}"):
            file.write_text(content)
            with pytest.raises(ValueError, match=r"delete the file\.$"):
                operator.upper_bound()


def test_a_folder_that_cannot_be_is_refused_before_any_proof(operator, tmp_path):
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "norms"):
        with (
            pytest.raises(ValueError, match=r"^cache_dir: .* is no folder and cannot be made"),
            configure_proofs(cache_dir=folder),
        ):
            raise AssertionError("it was entered")


def test_a_norm_that_cannot_be_written_is_told_and_holds(operator, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on the device")

    monkeypatch.setattr(kept, "write_sealed", fail)
    with configure_proofs(cache_dir=tmp_path), pytest.warns(UserWarning, match="cache_dir: .*no space left"):
        found = operator.upper_bound()
    assert found == operator.upper_bound()
