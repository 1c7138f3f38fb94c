import math

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from art_robust_plugins.lipschitz.norms import ROUND_UP, Convolution, Linear, lower_estimate, operator_of
from art_robust_plugins.lipschitz.norms.box import box_bound
from art_robust_plugins.lipschitz.norms.grid import grid_bounds

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
# Channels and sizes are limited so that the dense operator has at most about a million entries.
LARGEST_SIZE = {1: 16, 2: 16, 3: 6}
LARGEST_CHANNELS = {1: 4, 2: 2, 3: 2}


def dense(function, shape):
    """The matrix of a linear function of one sample, as torch applies it, [outputs, inputs] in float64."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        return function(basis).flatten(1).t()


def true_norm(function, shape):
    return float(torch.linalg.svdvals(dense(function, shape))[0])


def convolution_function(module):
    weight = module.weight.detach().double()

    def function(x):
        copy = type(module).__new__(type(module))
        copy.__dict__.update({k: v for k, v in module.__dict__.items() if k != "_parameters"})
        copy._parameters = {"weight": weight, "bias": None}
        return copy(x)

    return function


@st.composite
def modules(draw):
    """Convolution modules of every kind that torch accepts, with the size of an input."""
    dimensions = draw(st.sampled_from((1, 2, 2, 2, 3)))
    transposed = draw(st.sampled_from((False, False, True)))
    each = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * dimensions))  # noqa: E731
    size = each(3, LARGEST_SIZE[dimensions])
    kernel, stride, dilation = each(1, 4), each(1, 3), each(1, 2)
    groups = draw(st.integers(1, 3))
    channels = st.integers(1, max(1, LARGEST_CHANNELS[dimensions] // groups))
    arguments = {"stride": stride, "dilation": dilation, "groups": groups}
    if transposed:
        arguments["padding"] = each(0, 2)
        extra = tuple(max(s, d) - 1 for s, d in zip(stride, dilation, strict=True))
        arguments["output_padding"] = tuple(draw(st.integers(0, e)) for e in extra)
    else:
        mode = draw(st.sampled_from(("zeros", "zeros", "circular", "reflect", "replicate")))
        arguments["padding_mode"] = mode
        arguments["padding"] = draw(st.sampled_from(("numbers", "numbers", "same", "valid")))
        if arguments["padding"] == "same":
            arguments["stride"] = 1
        elif arguments["padding"] == "numbers":
            arguments["padding"] = each(0, 5 if mode == "zeros" else 2)
    make = (TRANSPOSED if transposed else CONVOLUTIONS)[dimensions]
    torch.manual_seed(draw(st.integers(0, 2**31)))
    inputs, outputs = draw(channels) * groups, draw(channels) * groups
    module = make(inputs, outputs, kernel, bias=False, **arguments)
    kind = draw(st.sampled_from(("gauss", "positive", "sparse", "tiny", "low rank")))
    with torch.no_grad():
        weight = torch.randn_like(module.weight)
        if kind == "positive":
            weight = weight.abs()
        elif kind == "sparse":
            weight *= torch.rand_like(weight) < 0.3
        elif kind == "tiny":
            weight *= 1e-25
        elif kind == "low rank":
            weight = torch.ones_like(weight) + 1e-3 * weight
        module.weight.copy_(weight)
    return module, (inputs, *size)


def runs_in_torch(module, shape):
    """Whether torch itself runs the module on this size."""
    try:
        return convolution_function(module)(torch.zeros(1, *shape, dtype=torch.float64)).numel() > 0
    except RuntimeError:
        return False


SLOW = settings(max_examples=250, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@SLOW
@given(modules())
def test_random_convolutions(case):
    module, shape = case
    if runs_in_torch(module, shape):
        check_operator(module, shape)
    else:
        with pytest.raises(ValueError, match="expected"):
            operator_of(module, shape)


def check_operator(module, shape):
    operator = operator_of(module, shape)
    function = convolution_function(module)
    truth = true_norm(function, shape)

    bound = operator.upper_bound().value
    assert bound >= truth
    assert bound <= truth * (1 + 1e-6) + 1e-6 * float(module.weight.detach().abs().max())

    coarse = grid_bounds(operator, module.weight.detach().double().unflatten(0, (module.groups, -1)))
    assert float(coarse.max()) * ROUND_UP >= truth

    exact = operator.with_weight(module.weight.detach().double())
    for steps in (1, 30):
        estimate, vector = lower_estimate(exact, steps=steps)
        assert float(estimate) <= truth * (1 + 1e-12)
        assert vector.shape == shape
    x = torch.randn(2, *shape, dtype=torch.float64)
    y = torch.randn(2, *operator.output_shape, dtype=torch.float64)
    torch.testing.assert_close(exact.apply(x), function(x))
    torch.testing.assert_close((exact.apply(x) * y).sum(), (x * exact.adjoint(y)).sum())


@SLOW
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from((torch.float32, torch.float64, torch.bfloat16)),
    st.integers(0, 2**31),
)
def test_random_linear_maps(outputs, inputs, dtype, seed):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)).to(dtype)
    truth = float(torch.linalg.svdvals(weight.double())[0])
    bound = Linear(weight).upper_bound()
    assert truth <= bound.value <= truth * (1 + 1e-6)
    assert bound.method == "svd"
    assert float(lower_estimate(Linear(weight.double()))[0]) <= truth * (1 + 1e-12)


@st.composite
def asymmetric(draw):
    size = draw(st.tuples(st.integers(3, 9), st.integers(3, 9)))
    pairs = draw(st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return size, pairs, kernel, draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 2**31))


@settings(SLOW, max_examples=100)
@given(asymmetric())
@example(((3, 3), ((4, 0), (0, 4)), (1, 2), 1, 1, 0))
def test_asymmetric_padding(case):
    size, pairs, kernel, stride, dilation, seed = case
    weight = torch.randn(2, 2, *kernel, generator=torch.Generator().manual_seed(seed)).double()
    sides = [side for pair in reversed(pairs) for side in pair]

    def function(x):
        return functional.conv2d(functional.pad(x, sides), weight, stride=stride, dilation=dilation)

    assume(all(n + sum(p) > dilation * (k - 1) for n, p, k in zip(size, pairs, kernel, strict=True)))
    truth = true_norm(function, (2, *size))
    operator = Convolution(weight, size, padding=pairs, stride=stride, dilation=dilation)
    assert truth <= operator.upper_bound().value <= truth * (1 + 1e-6)
    assert float(grid_bounds(operator, weight[None])) * ROUND_UP >= truth


@pytest.mark.parametrize(
    ("arguments", "channels", "size", "gap"),
    [
        ({"padding": 1}, (3, 16), 32, 0.01),
        ({"padding": 1, "stride": 2}, (8, 16), 24, 0.01),
        ({"padding": 1, "groups": 16}, (16, 16), 28, 0.01),
        ({"padding": "same", "dilation": 2}, (2, 2), 28, 0.02),
    ],
)
def test_grid_is_close_on_images(arguments, channels, size, gap):
    torch.manual_seed(0)
    weight = torch.randn(channels[1], channels[0] // arguments.get("groups", 1), 3, 3)
    coarse = Convolution(weight, (size, size), **arguments, cholesky_limit=0).upper_bound()
    fine = Convolution(weight, (size, size), **arguments).upper_bound()
    below, _ = lower_estimate(Convolution(weight.double(), (size, size), **arguments), steps=300)
    assert (coarse.method, fine.method) == ("grid", "cholesky")
    assert below.item() <= fine.value <= coarse.value <= below.item() * (1 + gap)


def test_circular_formula_of_the_input_size_is_no_bound():
    """Why the grid must have more points than the image: with as many, the formula can be too small."""
    weight = torch.tensor([[[1.0, -0.5, 1.0]]]).double()
    formula = torch.fft.fft(weight[0, 0], n=3).abs().max()
    truth = true_norm(lambda x: functional.conv1d(x, weight, padding=1), (1, 3))
    assert float(formula) < 0.8 * truth
    assert Convolution(weight, (3,), padding=1, cholesky_limit=0).upper_bound().value >= truth


def test_circular_padding_is_exact_on_the_grid():
    module = nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular", bias=False)
    truth = true_norm(convolution_function(module), (3, 8, 8))
    operator = Convolution(module.weight, (8, 8), padding=1, padding_mode="circular", cholesky_limit=0)
    assert truth <= operator.upper_bound().value <= truth * (1 + 1e-8)


def test_warm_start_converges_from_below_and_is_differentiable():
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    operator = Convolution(weight, (7, 7), padding=1, stride=2)
    truth = true_norm(lambda x: functional.conv2d(x, weight, padding=1, stride=2), (4, 7, 7))
    vector, previous = None, 0.0
    for _ in range(300):
        estimate, vector = lower_estimate(operator, vector)
        assert previous * (1 - 1e-12) <= estimate.item() <= truth * (1 + 1e-12)
        previous = estimate.item()
    assert previous == pytest.approx(truth, rel=1e-6)
    (gradient,) = torch.autograd.grad(estimate, weight)
    assert (gradient * weight).sum().item() == pytest.approx(truth, rel=1e-6)  # the norm is homogeneous
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).double()
    ends = [
        true_norm(lambda x, s=s: functional.conv2d(x, weight + s * direction, padding=1, stride=2), (4, 7, 7))
        for s in (1e-6, -1e-6)
    ]
    assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3)


def test_zero_weights():
    operator = Convolution(torch.zeros(2, 2, 3, 3, requires_grad=True), (4, 4))
    assert operator.upper_bound().value == 0
    assert Linear(torch.zeros(2, 3)).upper_bound().value == 0
    estimate, vector = lower_estimate(operator)
    estimate.backward()
    assert estimate.item() == 0
    assert torch.isfinite(vector).all()
    assert torch.isfinite(operator.weight.grad).all()


def test_estimate_leaves_the_random_stream_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    lower_estimate(Linear(torch.ones(3, 3)))
    Convolution(torch.ones(1, 1, 3), (5,)).upper_bound()
    assert torch.equal(before, torch.random.get_rng_state())


WEIGHT = torch.ones(2, 2, 3, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(torch.ones(2, 2, 2)), "weight: got shape"),
        (lambda: Linear(torch.ones(2, 2, dtype=torch.int64)), "weight: got values of type torch.int64"),
        (lambda: Linear(torch.tensor([[math.nan]])).upper_bound(), "weight: got NaN"),
        (lambda: Convolution(WEIGHT, (8,)), "weight: got shape"),
        (lambda: Convolution(WEIGHT, (8, 8), groups=True), "groups: got True"),
        (lambda: Convolution(WEIGHT, (8, 8), groups="x"), "groups: got 'x'"),
        (lambda: Convolution(WEIGHT, 8), "input_size: got 8"),
        (lambda: Convolution(WEIGHT, (8.5, 8)), "input_size: got"),
        (lambda: Convolution(WEIGHT, (2**70, 8)), "input_size: got"),
        (lambda: Convolution(WEIGHT, (8, 8), stride="x"), "stride: got 'x'"),
        (lambda: Convolution(WEIGHT, (8, 8), stride=1.5), "stride: got 1.5"),
        (lambda: Convolution(WEIGHT, (8, 8), dilation=None), "dilation: got None"),
        (lambda: Convolution(WEIGHT, (8, 8), output_padding={}), "output_padding: got {}"),
        (lambda: Convolution(WEIGHT, (8, 8), padding=1.5), "padding: got 1.5"),
        (lambda: Convolution(WEIGHT, (8, 8), padding=(1, None)), "padding: got"),
        (lambda: Convolution(WEIGHT, (8, 8), padding=None), "padding: got None"),
        (lambda: Convolution(WEIGHT, (8, 8), padding_mode=[]), "padding_mode: got"),
        (lambda: Convolution(WEIGHT, (8, 8), cholesky_limit="x"), "cholesky_limit: got 'x'"),
        (lambda: Convolution(WEIGHT, (8, 8), cholesky_limit=math.nan), "cholesky_limit: got nan"),
        (lambda: Linear(torch.ones(2, 2, device="meta")), "weight: got torch.strided on meta"),
        (lambda: Linear(torch.ones(2, 2).to_sparse()), "weight: got torch.sparse_coo"),
        (lambda: operator_of(nn.Linear(2, 2), None), "input_shape: got None"),
        (lambda: operator_of(nn.Linear(2, 2), "x"), "input_shape: got 'x'"),
        (lambda: lower_estimate(Linear(torch.ones(2, 2)), steps=1.5), "steps: got 1.5"),
        (lambda: lower_estimate(Linear(torch.ones(2, 2)), steps="x"), "steps: got 'x'"),
        (lambda: lower_estimate(Linear(torch.ones(2, 2)), torch.ones(2) * 1j), "vector: got torch.complex64"),
        (lambda: Convolution(WEIGHT, (8, 8), groups=3), "groups: got 3"),
        (lambda: Convolution(WEIGHT, (8, 8), stride=0), "stride: got 0"),
        (lambda: Convolution(WEIGHT, (8, 8), dilation=(1, 2, 3)), "dilation: got"),
        (lambda: Convolution(WEIGHT, (8, 8), padding="full"), "padding: got 'full'"),
        (lambda: Convolution(WEIGHT, (8, 8), padding="same", stride=2), "padding: got 'same'"),
        (lambda: Convolution(WEIGHT, (8, 8), padding=-1), "padding: got -1"),
        (lambda: Convolution(WEIGHT, (8, 8), padding_mode="mirror"), "padding_mode: got 'mirror'"),
        (lambda: Convolution(WEIGHT, (3, 3), padding=3, padding_mode="reflect"), "padding: got"),
        (lambda: Convolution(WEIGHT, (2, 2)), "input_size: got"),
        (lambda: Convolution(WEIGHT, (8, 8), output_padding=1), "output_padding: got 1"),
        (lambda: Convolution(WEIGHT, (8, 8), output_padding=2, stride=2, transposed=True), "output_padding: got 2"),
        (lambda: Convolution(WEIGHT.to(torch.float8_e4m3fn), (8, 8)), "weight: got values of type torch.float8"),
        (lambda: Convolution(WEIGHT, (8, 8), transposed=True, padding=((0, 1), (0, 1))), "padding: got"),
        (lambda: operator_of(nn.Conv2d(2, 2, 3), (3, 8, 8)), "input_shape: got"),
        (lambda: lower_estimate(Linear(torch.ones(2, 2)), steps=0), "steps: got 0"),
        (lambda: lower_estimate(Linear(torch.ones(2, 2)), torch.ones(3)), "vector: got shape"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_modules():
    with pytest.raises(TypeError, match="module: got ReLU"):
        operator_of(nn.ReLU(), (3,))


# Boxes: one level for all taps of a channel but the middle one


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(4, 4), (3, 7), (9, 6), (1, 6), (12, 12)])
@pytest.mark.parametrize("middle", [1.0, -0.3, 1.9, 4.0, 1 / 9])
def test_the_norm_of_a_box_is_exact(mode, kernel, size, middle):
    reach = kernel // 2
    if min(size) < reach + {"reflect": 1, "circular": 0}.get(mode, -9):
        pytest.skip("torch refuses this padding")
    for level in (1 / kernel**2, -1 / kernel**2):
        weight = torch.full((3, 1, kernel, kernel), level, dtype=torch.float64)
        weight[:, :, reach, reach] = middle
        operator = Convolution(weight, size, padding=reach, groups=3, padding_mode=mode)
        single = operator.with_weight(weight[:1], groups=1)
        true = true_norm(single.apply, (1, *size))
        bound = operator.upper_bound()
        assert true <= bound.value <= true * (1 + 1e-6)
        box, tight = box_bound(single)
        assert true <= box
        assert not tight or box <= true * (1 + 1e-8) + 1e-8


def test_boxes_that_cancel_have_a_bound_above_zero():
    """An image of one pixel meets the sum of all taps, which is zero up to rounding."""
    weight = torch.full((1, 1, 3, 3), 0.1, dtype=torch.float64)
    weight[:, :, 1, 1] = -0.8
    operator = Convolution(weight, (1, 1), padding=1, padding_mode="replicate")
    assert true_norm(operator.apply, (1, 1, 1)) < 1e-15 < operator.upper_bound().value < 1e-7


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_boxes_of_large_images_and_many_channels_are_cheap(mode):
    weight = torch.full((64, 1, 3, 3), -1 / 9)
    weight[:, :, 1, 1] += 2
    operator = Convolution(weight, (112, 112), padding=1, groups=64, padding_mode=mode)
    assert (
        float(lower_estimate(operator, steps=30)[0])
        <= operator.upper_bound().value
        <= {"zeros": 7, "reflect": 8.1}[mode] / 3
    )


def test_what_is_no_box_is_left_to_the_other_bounds():
    ones = torch.ones(1, 1, 3, 3)
    for operator in (
        Convolution(ones, (6, 6)),
        Convolution(ones, (6, 6), padding=1, stride=2),
        Convolution(ones, (6, 6), padding=[(1, 0), (1, 1)]),
        Convolution(ones, (6, 6), padding=1, transposed=True),
        Convolution(torch.ones(1, 1, 2, 2), (6, 6), padding=[(1, 0), (1, 0)]),
        Convolution(torch.ones(1, 2, 3, 3), (6, 6), padding=1),
        Convolution(torch.ones(1, 1, 1, 1), (6, 6)),
        Convolution(torch.arange(9.0).view(1, 1, 3, 3), (6, 6), padding=1),
        Convolution(torch.ones(1, 1, 3), (6,), padding=1),
    ):
        assert box_bound(operator) == (math.inf, False)
        assert true_norm(operator.apply, operator.input_shape) <= operator.upper_bound().value


@pytest.mark.parametrize("value", [None, "x", 3, [[1.0]], True])
def test_what_is_no_tensor_is_refused_by_its_name(value):
    for call in (lambda: Linear(value), lambda: Convolution(value, (8, 8))):
        with pytest.raises(TypeError, match="weight: got"):
            call()
    with pytest.raises(TypeError, match="vector: got"):
        lower_estimate(Linear(torch.ones(2, 2)), "x" if value is None else value)
