"""Every way of deformable sampling against a loop over points with its own bilinear interpolation, and each other."""

from __future__ import annotations

import logging
import math
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from detrove.errors import InputError
from detrove.nn import sampling
from detrove.nn.sampling import sample_levels, sample_levels_torch, sampling_way, use_sampling

SHAPES = [(4, 6), (2, 3)]
TOKENS = 4 * 6 + 2 * 3


@pytest.fixture(params=["torch", "numba"])
def way(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    use_sampling(request.param)
    yield request.param
    use_sampling("auto")


@pytest.fixture
def numba_way():
    pytest.importorskip("numba")
    use_sampling("numba")
    yield
    use_sampling("auto")


def random_parts(batch=2, queries=5, heads=3, dim=2, shapes=SHAPES, points=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": dtype}
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, dim, **options)
    locations = 1.6 * torch.rand(batch, queries, heads, len(shapes), points, 2, **options) - 0.3
    weights = torch.rand(batch, queries, heads, len(shapes), points, **options)
    return value, locations, weights


def run(function, parts, shapes=SHAPES):
    """Output and the three gradients."""
    leaves = [part.clone().requires_grad_() for part in parts]
    output = function(leaves[0], shapes, *leaves[1:])
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    output.backward(gradient)
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def test_as_by_loops(way, plain_sample_levels):
    value, locations, weights = random_parts()
    assert (locations < 0).any()
    assert (locations > 1).any()
    expected = plain_sample_levels(value, SHAPES, locations, weights)
    torch.testing.assert_close(sample_levels(value, SHAPES, locations, weights), expected, rtol=0, atol=1e-10)


def test_gradients_by_finite_differences(way):
    value, locations, weights = random_parts(batch=1, queries=2, heads=2)
    inputs = tuple(part.requires_grad_() for part in (value, locations, weights))
    torch.autograd.gradcheck(lambda v, x, w: sample_levels(v, SHAPES, x, w), inputs)


@pytest.mark.parametrize(
    "sizes",
    [
        {"dim": 1, "points": 1, "heads": 1},
        {"dim": 32, "points": 4, "heads": 8, "queries": 70, "shapes": [(20, 31), (10, 16), (5, 8), (3, 4)]},
        {"dim": 17, "shapes": [(1, 1), (1, 5)], "queries": 9},
        {"batch": 5, "queries": 1, "shapes": [(7, 2)]},
        {"queries": 0},
    ],
)
def test_the_kernel_as_torch(numba_way, sizes):
    parts = random_parts(**sizes)
    shapes = sizes.get("shapes", SHAPES)
    for given, expected in zip(run(sample_levels, parts, shapes), run(sample_levels_torch, parts, shapes), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-10)


def test_single_precision(numba_way):
    parts = random_parts(queries=200, heads=8, dim=32, dtype=torch.float32)
    given, expected = (run(function, parts) for function in (sample_levels, sample_levels_torch))
    for ours, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_half_precision_is_sampled_in_float32(numba_way):
    value, locations, weights = random_parts(dtype=torch.float32)
    half = value.bfloat16()
    given = sample_levels(half, SHAPES, locations, weights.bfloat16())
    assert given.dtype == torch.bfloat16
    expected = sample_levels_torch(half.float(), SHAPES, locations, weights.bfloat16().float())
    torch.testing.assert_close(given, expected.bfloat16(), rtol=0, atol=0)


def test_strided_parts(numba_way):
    value, locations, weights = random_parts()
    strided = [part.transpose(0, 2).contiguous().transpose(0, 2) for part in (value, locations, weights)]
    assert not any(part.is_contiguous() for part in strided)
    expected = run(sample_levels_torch, (value, locations, weights))
    for ours, theirs in zip(run(sample_levels, strided), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_not_a_number_is_not_lost(way):
    value, locations, weights = random_parts()
    weights[1, 2, 0, 1, 1] = math.nan
    for place in (0.5, 7.0):  # inside the level, and far outside
        locations[1, 2, 0, 1, 1] = place
        output = sample_levels(value, SHAPES, locations, weights).unflatten(2, (3, 2))
        assert output[1, 2, 0].isnan().all()
        assert output.isnan().sum() == 2


def test_the_same_bits_for_any_number_of_threads(numba_way, monkeypatch):
    from detrove.nn import sampling_numba

    parts = random_parts(queries=300, heads=4, dim=8, dtype=torch.float32)
    outcomes = []
    for threads in (1, 2, 5, 16):
        monkeypatch.setattr(sampling_numba, "_num_threads", lambda points, threads=threads: threads)
        outcomes.append(run(sample_levels, parts))
    for outcome in outcomes[1:]:
        assert all(torch.equal(one, other) for one, other in zip(outcome, outcomes[0], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_do_not_wait_for_ever(numba_way, method, monkeypatch):
    from detrove.nn import sampling_numba

    monkeypatch.setattr(sampling_numba, "_num_threads", lambda points: 2)  # a forked process inherits it
    value, locations, weights = random_parts(queries=3000, dtype=torch.float32)
    parts = (value, [size for shape in SHAPES for size in shape], locations, weights)
    expected = sampling_numba.forward(*parts)
    # as in a data loader's worker: after a fork, torch's own operations on several threads wait for ever
    with ProcessPoolExecutor(1, multiprocessing.get_context(method), torch.set_num_threads, (1,)) as pool:
        given = pool.submit(sampling_numba.forward, *parts).result(timeout=60)
    assert torch.equal(given, expected)


@pytest.mark.slow
def test_torch_knows_the_operator(numba_way):
    sampling_way("cpu")
    value, locations, weights = random_parts()
    leaves = [part.requires_grad_() for part in (value, locations, weights)]
    sizes = [size for shape in SHAPES for size in shape]
    torch.library.opcheck(torch.ops.detrove.sample_levels.default, (leaves[0], sizes, leaves[1], leaves[2]))


class Sampling(torch.nn.Module):
    def forward(self, value, locations, weights):
        return sample_levels(value, SHAPES, locations, weights)


@pytest.mark.slow
def test_compiled_and_exported(numba_way):
    parts = random_parts(dtype=torch.float32)
    expected = run(sample_levels_torch, parts)
    module = Sampling()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    given = run(lambda value, shapes, locations, weights: compiled(value, locations, weights), parts)
    for ours, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(module, parts)
    torch.testing.assert_close(exported.module()(*parts), expected[0])


def test_autocast(numba_way):
    value, locations, weights = random_parts(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        given = sample_levels(value.bfloat16(), SHAPES, locations, weights)
    torch.testing.assert_close(given.float(), sample_levels_torch(value, SHAPES, locations, weights), rtol=0, atol=0.05)


def test_the_way_is_chosen_once_and_said_once(monkeypatch, caplog):
    pytest.importorskip("numba")
    use_sampling("auto")
    parts = random_parts()
    with caplog.at_level(logging.INFO, logger="detrove"):
        for _ in range(3):
            sample_levels(parts[0], SHAPES, *parts[1:])
    assert [record.message for record in caplog.records] == ["deformable attention on cpu samples with numba"]
    use_sampling("torch")
    assert sampling_way() == "torch"
    use_sampling("auto")
    monkeypatch.setenv("DETROVE_SAMPLING", "torch")
    assert sampling_way() == "torch"
    use_sampling("auto")


def test_without_numba_torch_samples(monkeypatch):
    monkeypatch.setattr(sampling, "_installed", lambda package: False)
    use_sampling("auto")
    assert sampling_way("cpu") == sampling_way("cuda") == "torch"
    with pytest.raises(InputError, match=r'sampling with numba needs it installed: pip install "detrove\[fast\]"'):
        use_sampling("numba")
    monkeypatch.setenv("DETROVE_SAMPLING", "triton")
    use_sampling("auto")
    assert sampling_way("cpu") == "torch"
    with pytest.raises(InputError, match="DETROVE_SAMPLING=triton needs it installed"):
        sampling_way("cuda")
    monkeypatch.undo()
    use_sampling("auto")


def test_unknown_ways_are_refused(monkeypatch):
    with pytest.raises(InputError, match="unknown way of sampling 'fast': choose one of auto, torch, numba, triton"):
        use_sampling("fast")
    monkeypatch.setenv("DETROVE_SAMPLING", "fast")
    use_sampling("auto")
    with pytest.raises(InputError, match="DETROVE_SAMPLING=fast: choose one of"):
        sampling_way()
    monkeypatch.undo()
    use_sampling("auto")


INTERPRETED = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from detrove.nn import sampling_triton
from detrove.nn.sampling import sample_levels_torch

shapes, sizes = [(4, 6), (2, 3)], [4, 6, 2, 3]
for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": dtype}
    value = torch.randn(2, 30, 3, 5, **options).requires_grad_()
    locations = (1.6 * torch.rand(2, 5, 3, 2, 2, 2, **options) - 0.3).requires_grad_()
    weights = torch.rand(2, 5, 3, 2, 2, **options).requires_grad_()
    expected = sample_levels_torch(value, shapes, locations, weights)
    gradient = torch.randn(expected.shape, **options)
    expected.backward(gradient)
    parts = (value.detach(), sizes, locations.detach(), weights.detach())
    torch.testing.assert_close(sampling_triton.forward(*parts), expected.detach(), rtol=0, atol=tolerance)
    given = sampling_triton.backward(gradient, *parts)
    for ours, leaf in zip(given, (value, locations, weights)):
        torch.testing.assert_close(ours, leaf.grad, rtol=0, atol=tolerance)
print("equal")
"""

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from detrove.nn import sampling_triton

constants = {"num_levels": 4, "num_points": 4, "block": 32}
for kernel in (sampling_triton._forward_kernel, sampling_triton._backward_kernel):
    for real in ("*fp32", "*fp64"):
        kinds = {"levels": "*i64", **dict.fromkeys(("tokens", "queries", "heads", "dim"), "i32")}
        signature = {name: "constexpr" if name in constants else kinds.get(name, real) for name in kernel.arg_names}
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
print("compiled")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("script", "told"), [(INTERPRETED, "equal"), (COMPILED, "compiled")], ids=["run", "compile"])
def test_triton_without_a_gpu(script, told):
    """Triton's interpreter runs the kernels on the CPU; its compiler makes machine code for a GPU that is not here."""
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == told, done.stderr


if torch.cuda.is_available():

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
    def test_on_a_gpu(dtype, tolerance):
        use_sampling("triton")
        parts = [part.cuda() for part in random_parts(queries=200, heads=8, dim=32, dtype=dtype)]
        leaves, others = ([part.clone().requires_grad_() for part in parts] for _ in range(2))
        output = sample_levels(leaves[0], SHAPES, *leaves[1:])
        expected = sample_levels_torch(others[0], SHAPES, *others[1:])
        gradient = torch.randn_like(expected)
        output.backward(gradient)
        expected.backward(gradient)
        torch.testing.assert_close(output, expected, rtol=0, atol=tolerance)
        for ours, theirs in zip(leaves, others, strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=tolerance)
        use_sampling("auto")
