"""The benchmark's PyTorch twins: the same ops and networks, so that their times can be compared."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp
from jaxbp import __main__ as command_line
from jaxbp import _bench
from jaxbp._bench import _cases, _measure, _models, _programs
from jaxbp._bench._suite import CASES, Case

torch = pytest.importorskip("torch")

from jaxbp._bench import _torch  # noqa: E402

ONE = "^average pool: global average pool 7x7/1 1x7x7x2048$"

TWINS = (
    Case("", "", "conv", ((2, 9, 8, 4), (3, 3, 4, 6), (6,)), (), {"strides": 2, "padding": 1}),
    Case("", "", "conv", ((2, 9, 4), (2, 4, 6)), (), {"strides": 1, "padding": ((3, 0),), "kernel_dilation": 3}),
    Case("", "", "conv", ((2, 5, 6, 7, 4), (3, 3, 3, 2, 4)), (), {"strides": 1, "feature_group_count": 2}),
    Case("", "", "conv_transpose", ((2, 5, 6, 4), (4, 4, 4, 3)), ((2, 2), "SAME")),
    Case("", "", "conv_transpose", ((2, 5, 4), (2, 4, 3)), ((2,), "VALID")),
    Case("", "", "max_pool", ((2, 8, 9, 4),), ((3, 3), (1, 1), "SAME")),
    Case("", "", "max_pool", ((2, 4, 6, 8, 4),), ((2, 2, 2), (2, 2, 2), "VALID")),
    Case("", "", "avg_pool", ((2, 8, 9, 4),), ((3, 3), (1, 1), "SAME"), {"count_include_pad": False}),
    Case("", "", "avg_pool", ((2, 8, 4),), ((4,), (4,), "VALID")),
)


@pytest.fixture
def quick(monkeypatch):
    """Leave out what measures the machine."""
    monkeypatch.setattr(_bench, "machine_limits", lambda dtype: _measure.Limits(1e11, 1e10))
    monkeypatch.setattr(_bench, "warm_up", lambda: None)
    monkeypatch.setattr(_measure, "SHORTEST_SAMPLE", 0.0)


def bench(*arguments: str) -> int:
    """Run the command as a user does, with as little timing as it can do."""
    return command_line.main(["bench", "--seconds", "0", *arguments])


@pytest.mark.parametrize("case", TWINS, ids=lambda case: f"{case.op} {case.shapes[0]}")
def test_pytorch_computes_the_same(case):
    function = _programs.function_of(case, jaxbp.automatic)
    arrays, delta = _programs.random_arrays(case, function, jnp.float32)
    calls = _torch.torch_programs(case, arrays, delta, parts=True)
    output, pull = jax.vjp(function, *arrays)

    def in_our_layout(tensor):
        array, rank = tensor.detach().numpy(), tensor.ndim - 2
        if tensor.shape[0] == delta.shape[0]:
            return np.moveaxis(array, 1, -1)
        if array.ndim == 1:
            return array
        kernel = array.transpose(*range(2, rank + 2), 1, 0)
        return np.flip(kernel.swapaxes(-1, -2), range(rank)) if case.op == "conv_transpose" else kernel

    np.testing.assert_allclose(in_our_layout(calls["forward"]()), output, rtol=1e-5, atol=1e-5)
    gradients = calls[_programs.WHOLE]()
    for gradient, expected in zip(gradients, pull(delta), strict=True):
        np.testing.assert_allclose(in_our_layout(gradient), expected, rtol=1e-5, atol=1e-5)
    for gradient, name in zip(gradients, _programs.GRADIENTS, strict=False):
        np.testing.assert_array_equal(gradient.numpy(), calls[name]()[0].numpy())


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_pytorch_has_every_case_with_the_same_output_shape(case):
    output = jax.eval_shape(
        _programs.function_of(case, jaxbp.automatic), *(jax.ShapeDtypeStruct(s, jnp.float32) for s in case.shapes)
    )
    rank = len(case.shapes[0]) - 2
    with torch.device("meta"):
        x, *others = (torch.empty(shape) for shape in case.shapes)
        x = x.permute(0, rank + 1, *range(1, rank + 1))
        first = (rank, rank + 1) if case.op == "conv_transpose" else (rank + 1, rank)
        kernels = [other.permute(*first, *range(rank)) if other.ndim > 1 else other for other in others]
        found = _torch._function(case, output.shape)(x, *kernels)
    assert (found.shape[0], *found.shape[2:], found.shape[1]) == output.shape


def test_cases_that_cannot_be_had_in_pytorch_are_a_note(quick, capsys, monkeypatch):
    monkeypatch.setattr(_torch, "_function", lambda case, shape: lambda x: x)
    assert bench("--filter", ONE, "--torch") == 0
    assert "PyTorch does not run: ValueError: global average pool" in capsys.readouterr().out


@pytest.mark.parametrize("model", _models.MODELS, ids=lambda model: model.name)
def test_pytorch_has_the_same_loss(model):
    model = model._replace(images=(2, *model.images[1:]))
    data = _models.training_data(model, jnp.float32)
    parameters = _models.initial_parameters(model, jaxbp, jnp.float32)
    layers = _models.jax_layers(jaxbp.automatic)
    logits = jax.jit(lambda p, x: model.network(layers, _models.from_list(p), x))(parameters, data[0])
    loss = float(jnp.mean(jaxbp.softmax_cross_entropy(logits, data[1])))
    step = _torch.torch_step(model, parameters, *data)
    first, second = step(), step()
    assert isinstance(first, torch.Tensor) and float(first.detach()) == pytest.approx(loss, rel=1e-4)
    assert float(second.detach()) < float(first.detach())


def test_pytorch_takes_part(quick, capsys):
    assert bench("--filter", ONE, "--torch", "--parts") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "torch " in lines[0] and "PyTorch" in lines[3]
    assert all("-" not in line.split() for line in lines[5:8])


def test_pytorch_takes_turns_with_manual_alone(quick, tmp_path, monkeypatch):
    # Its threads, and the memory that it leaves behind, would slow down the rule that follows.
    pairs = []

    def interleave(programs, seconds, pause=0.0):
        pairs.append(([*programs], pause > 0))
        return _measure.interleave(programs, seconds, pause)

    monkeypatch.setattr(_cases, "interleave", interleave)
    assert bench("--filter", ONE, "--torch", "--json", str(tmp_path / "bench.json")) == 0
    assert pairs == [(["manual", "automatic"], False), (["manual_beside_torch", "torch"], True)]
    (case,) = json.loads((tmp_path / "bench.json").read_text())["cases"]
    whole = case["parts"]["forward + gradients"]
    best = whole["torch"]["best_seconds"] / whole["manual_beside_torch"]["best_seconds"]
    assert whole["torch_over_manual"]["best"] == pytest.approx(best)


def test_pytorch_is_timed_where_neither_rule_runs(quick, capsys, monkeypatch):
    def refuse(*arguments):
        raise ValueError("not here")

    monkeypatch.setattr(_cases, "_ready_programs", refuse)
    assert bench("--filter", ONE, "--torch") == 1
    out = capsys.readouterr().out
    assert "manual does not run: ValueError: not here" in out and "automatic does not run" in out
    (line,) = (line for line in out.splitlines() if line.startswith("global average pool"))
    assert line.split().count("-") == 6 and float(line.split()[-6]) > 0


def test_on_a_gpu_it_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert bench("--torch") == 2
    message = "jaxbp bench: --torch compares on a CPU, but JAX runs on gpu: set JAX_PLATFORMS=cpu\n"
    assert capsys.readouterr().err == message
