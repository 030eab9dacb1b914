"""`bnfold.torch`: the same function as ONNX Runtime's, trained as torch trains, and back into the file."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import REPO
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.parser import parse_model
from torch_backend import cases, torch, trouble

sys.path.append(str(REPO / "benchmarks"))
from torch_bridge import LIMITS, agreement, error, forward, run, train, training_form

import bnfold
from bnfold.torch import OnnxModule, save_back, to_module, write_back
from bnfold.verify.inputs import drawn

SAMPLES = sorted((REPO / "sample_models").glob("*.onnx"))
SHAPES = {"tabular_mlp": (30,)}

SKELETONS = """
conv_vae.dynamo18 densenet_bc_g16.legacyE13 eegnet.legacy13 gru_bn.legacy13 hand_bn_training_mode.hand15
keras_fused_cnn.tf2onnx13 linbn_tokens_flat.legacy17 pointnet_cls.dynamo18 shufflenet_v2_x0_5.legacy17 siamese.dynamo20
""".split()
"""One of each idea; all of them: benchmarks/torch_bridge.py models."""

# Node tests that have to pass with any version of onnx that bnfold works with: 1.23 brings 1,884, of which 1,509 do.
NODE_TESTS = 500


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def batch(path: Path, size: int = 8) -> Any:
    torch.manual_seed(0)
    return torch.randn(size, *SHAPES.get(path.stem, (1, 8, 8)))


def net(nodes: str, inputs: str, output: str, tensors: dict[str, Any], opset: int = 17) -> ModelProto:
    """A model of nodes in ONNX's text form and tensors by name."""
    model = parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => ({output}) {{ {nodes} }}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(t), name) for name, t in tensors.items())
    onnx.checker.check_model(model)
    return model


def norm(channels: int, prefix: str = "", seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    values = {name: rng.random(channels).astype(np.float32) + 0.5 for name in ("gamma", "beta", "mean", "var")}
    return {prefix + name: value for name, value in values.items()}


# ------------------------------------------------------------------------------------------------- the oracle
@pytest.mark.slow
def test_onnx_node_tests() -> None:
    reasons = [trouble(case) for case in cases()]
    assert reasons.count("") >= NODE_TESTS
    unexplained = [why for why in reasons if why.startswith(("AttributeError", "NameError", "KeyError"))]
    assert not unexplained


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_sample_models_agree_with_onnx_runtime(path: Path) -> None:
    result = agreement(onnx.load(path))
    assert set(result.errors) == set(LIMITS)
    assert result.good, result


@pytest.mark.slow
@pytest.mark.parametrize("name", SKELETONS)
def test_skeletons_agree_with_onnx_runtime(name: str, hydrated: Callable[[str], Path]) -> None:
    result = agreement(onnx.load(hydrated(name)), steps=5)
    assert result.good, result


# ------------------------------------------------------------------------------------------- what a module is
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_state_bears_the_names_of_the_file(path: Path) -> None:
    model, module = onnx.load(path), to_module(path)
    floats = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 1}
    assert set(module.state_dict()) == floats
    assert all(key == name for key, name in module.names.items())
    statistics = {node.input[i] for node in model.graph.node if node.op_type == "BatchNormalization" for i in (3, 4)}
    assert {name for name, _ in module.named_parameters()} == floats - statistics
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not module.training


def test_state_dict_goes_into_another_module() -> None:
    first, second = to_module(SAMPLES[0]), to_module(SAMPLES[0])
    train(first.train(), {first.input_names[0]: batch(SAMPLES[0]).numpy()}, 2)
    assert not second.load_state_dict(first.state_dict()).unexpected_keys
    x = batch(SAMPLES[0])
    assert torch.equal(first.eval()(x), second(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_independent(duplicate: Callable[[Any], Any]) -> None:
    module, x = to_module(SAMPLES[2]).train(), batch(SAMPLES[2])
    other = duplicate(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    other(x).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(module(x), duplicate(module)(x))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_torch_compile_finds_one_graph(path: Path) -> None:
    """In training and in evaluation; 'eager' finds graph breaks without compiling what it traced."""
    symbolic = path.stem == "tabular_mlp"  # sizes as symbols take some ten times as long to trace
    module, reference, x = to_module(path).train(), to_module(path).train(), batch(path)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=symbolic)
    for size in (8, 5) if symbolic else (8,):
        a, b = compiled(x[:size]), reference(x[:size])
        torch.testing.assert_close(a, b)
    a.square().mean().backward()
    b.square().mean().backward()
    for one, other in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for one, other in zip(module.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(compiled.eval()(x), reference.eval()(x))
    assert bnfold.torch.write_back(path, compiled).graph.node == onnx.load(path).graph.node


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_moved_to_another_type(dtype: Any) -> None:
    module, x = to_module(SAMPLES[0]), batch(SAMPLES[0])
    expected = module(x).detach()
    found = module.to(dtype)(x.to(dtype))
    assert found.dtype is dtype
    limit = {torch.float64: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]
    assert error(expected, found.detach().double()) < limit
    module.train()(x.to(dtype)).sum().backward()
    assert all(parameter.grad.dtype is dtype for parameter in module.parameters())


def test_casts_go_where_the_module_goes() -> None:
    ones = np.ones(3, np.float32)
    cast = net("h = Mul(x, w)  y = Cast<to: int = 1>(h)", "float[N, 3] x", "float[N, 3] y", {"w": ones})
    module = to_module(cast).double()
    assert module(torch.ones(2, 3, dtype=torch.float64)).dtype is torch.float64
    to_integers = net("y = Cast<to: int = 7>(x)", "float[N] x", "int64[N] y", {})
    assert to_module(to_integers).double()(torch.ones(2, dtype=torch.float64)).dtype is torch.int64


def test_sizes_stay_python_numbers() -> None:
    flatten = net(
        "s = Shape(x)  n = Gather<axis: int = 0>(s, zero)  u = Unsqueeze(n, first)  t = Concat<axis: int = 0>(u, rest) "
        "r = Reshape(x, t)  y = MatMul(r, w)",
        "float[N, 2, 3] x", "float[N, 4] y",
        {"zero": np.int64(0), "first": np.array([0]), "rest": np.array([-1]), "w": np.ones((6, 4), np.float32)},
    )  # fmt: skip
    module = to_module(flatten)
    assert "to_tensor" not in module.code
    assert "to_list" not in module.code
    for size in (1, 5):
        x = torch.randn(size, 2, 3)
        torch.testing.assert_close(module(x), x.flatten(1) @ torch.ones(6, 4))


def test_inputs_by_order_and_by_name() -> None:
    module = to_module(net("y = Sub(a, b)", "float[2] a, float[2] b", "float[2] y", {}))
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    assert torch.equal(module(a, b), a - b)
    assert torch.equal(module(b=b, a=a), a - b)
    assert torch.equal(module(a, b=b), a - b)
    for wrong in ((a,), (a, b, b), ()):
        with pytest.raises(bnfold.UsageError, match=r"takes 2 inputs: 'a', 'b'"):
            module(*wrong)


# ---------------------------------------------------------------------------------------- batch normalisation
def test_training_mode_is_onnx_training_mode() -> None:
    bn = net(
        "y = BatchNormalization<epsilon: float = 0.01, momentum: float = 0.7>(x, gamma, beta, mean, var)",
        "float[N, 3, 5] x", "float[N, 3, 5] y", norm(3),
    )  # fmt: skip
    feeds = {"x": np.random.default_rng(1).normal(3, 2, (4, 3, 5)).astype(np.float32)}
    form, results = training_form(bn)
    expected = run(form, feeds)
    module = to_module(bn).train()
    assert error(expected["y"], forward(module, feeds)[0].detach()) < 1e-6
    for name, result in results.items():
        assert error(expected[result], module.state_dict()[name]) < 1e-6
    count = 4 * 5
    biased = feeds["x"].transpose(1, 0, 2).reshape(3, -1).var(1)
    old = norm(3)["var"]
    assert np.allclose(module.state_dict()["var"], 0.7 * old + 0.3 * biased, rtol=1e-6)
    assert not np.allclose(module.state_dict()["var"], 0.7 * old + 0.3 * biased * count / (count - 1), rtol=1e-3)


def test_evaluation_leaves_statistics_alone() -> None:
    module = to_module(SAMPLES[0])
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module(batch(SAMPLES[0]))
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    module.train()(batch(SAMPLES[0]))
    assert not any(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers() if buffer.numel())


def test_node_in_training_mode_normalises_by_the_batch_in_evaluation_too() -> None:
    bn = net(
        "y, m, v = BatchNormalization<training_mode: int = 1>(x, gamma, beta, mean, var)",
        "float[N, 3] x", "float[N, 3] y, float[3] m, float[3] v", norm(3),
    )  # fmt: skip
    feeds = {"x": np.random.default_rng(1).standard_normal((9, 3)).astype(np.float32)}
    module = to_module(bn)
    for expected, found in zip(run(bn, feeds).values(), forward(module, feeds), strict=True):
        assert error(expected, found.detach()) < 1e-6
    assert np.array_equal(module.state_dict()["mean"], norm(3)["mean"])


def test_gradients_are_those_of_torch() -> None:
    values = norm(4)
    bn = net("y = BatchNormalization(x, gamma, beta, mean, var)", "float[N, 4] x", "float[N, 4] y", values)
    module, native = to_module(bn).train(), torch.nn.BatchNorm1d(4)
    native.weight.data, native.bias.data = torch.tensor(values["gamma"]), torch.tensor(values["beta"])
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    module(x).square().sum().backward()
    native(x).square().sum().backward()
    parameters = dict(module.named_parameters())
    torch.testing.assert_close(parameters["gamma"].grad, native.weight.grad)
    torch.testing.assert_close(parameters["beta"].grad, native.bias.grad)


def test_shared_batch_norm_is_updated_by_each_use() -> None:
    twice = net(
        "a = BatchNormalization(x, gamma, beta, mean, var)  y = BatchNormalization(a, gamma, beta, mean, var)",
        "float[N, 3] x", "float[N, 3] y", norm(3),
    )  # fmt: skip
    module = to_module(twice).train()
    x = torch.randn(8, 3)
    module(x).sum().backward()  # the second update must not spoil what the first one's backward pass needs
    values = {name: torch.tensor(value) for name, value in norm(3).items()}
    inner = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * values["gamma"] + values["beta"]
    once = 0.9 * values["mean"] + 0.1 * x.mean(0)
    torch.testing.assert_close(module.state_dict()["mean"], 0.9 * once + 0.1 * inner.mean(0))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_frozen_statistics_are_folded_on_the_fly(path: Path) -> None:
    """The same function and gradients as BN in evaluation mode, in training too; and statistics never move."""
    frozen, plain, x = to_module(path, frozen_statistics=True).train(), to_module(path), batch(path)
    behind_convs = sum(node.op_type == "Conv" for node in onnx.load(path).graph.node)
    assert bool(behind_convs) == ("conv_norm" in frozen.code)
    a, b = frozen(x), plain(x)
    assert error(b.detach(), a.detach()) < 1e-5
    a.square().mean().backward()
    b.square().mean().backward()
    for one, other in zip(frozen.parameters(), plain.parameters(), strict=True):
        assert error(other.grad, one.grad) < 1e-3 or other.grad.abs().max() < 1e-6
    assert write_back(path, frozen) == onnx.load(path)


def test_what_others_read_is_not_folded_on_the_fly() -> None:
    model = net(
        "c = Conv(x, w)  n = BatchNormalization(c, gamma, beta, mean, var)  y = Add(c, n)",
        "float[N, 2, 4, 4] x", "float[N, 3, 2, 2] y", norm(3) | {"w": np.ones((3, 2, 3, 3), np.float32)},
    )  # fmt: skip
    module = to_module(model, frozen_statistics=True)
    assert "conv_norm" not in module.code
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 2, 4, 4)).astype(np.float32)}
    assert error(run(model, feeds)["y"], forward(module.train(), feeds)[0].detach()) < 1e-5


@pytest.mark.parametrize(("opset", "ratio"), [(7, "<ratio: float = 0.5>(x)"), (13, "(x, ratio)")])
def test_dropout_is_for_training(opset: int, ratio: str) -> None:
    tensors = {"ratio": np.float32(0.5)} if opset > 12 else {}
    module = to_module(net(f"y = Dropout{ratio}", "float[N] x", "float[N] y", tensors, opset))
    x = torch.ones(1000)
    assert torch.equal(module(x), x)
    y = module.train()(x)
    assert set(y.tolist()) == {0.0, 2.0}
    assert 400 < (y == 0).sum() < 600


# ------------------------------------------------------------------------------------------ what trains, and names
def test_what_trains_can_be_chosen() -> None:
    names = [name for name, _ in to_module(SAMPLES[0]).named_parameters()]
    last = names[-1]
    for choice in (last, [last], lambda name: name == last):
        module = to_module(SAMPLES[0], train=choice)
        assert [name for name, p in module.named_parameters() if p.requires_grad] == [last]
    assert not any(p.requires_grad for p in to_module(SAMPLES[0], train=[]).parameters())
    with pytest.raises(bnfold.UsageError, match=r"train 'nonsense\*' matches the name of no floating tensor"):
        to_module(SAMPLES[0], train=["*", "nonsense*"])


def test_constants_of_the_function_do_not_train() -> None:
    model = net(
        "a = Pow(x, two)  b = Mul(a, factor)  c = Clip(b, zero, six)  y = Add(c, bias)",
        "float[N, 3] x", "float[N, 3] y",
        {"two": np.float32(2), "factor": np.array([0.5], np.float32), "zero": np.float32(0), "six": np.float32(6),
         "bias": np.ones(3, np.float32)},
    )  # fmt: skip
    assert [name for name, _ in to_module(model).named_parameters()] == ["bias"]
    assert "factor" in dict(to_module(model, train="factor").named_parameters())


ODD_NAMES = ["a", "a.b", "forward", "x..y", ".", "training", "0.weight", "é", "/w/Constant_output_0",
             'q"); import os; ("', "back\\slash", "new\nline", "{brace}", "code", "constants_",
             "like_.as_float32"]  # fmt: skip


def test_every_name_has_a_key_of_its_own() -> None:
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(3).astype(np.float32) for name in ODD_NAMES}
    model = net("y = Identity(x)", "float[3] x", "float[3] y", tensors)
    for i, name in enumerate(ODD_NAMES):
        model.graph.node.append(helper.make_node("Add", [f"t{i}" if i else "x", name], [f"t{i + 1}"]))
    del model.graph.node[0]
    model.graph.node[-1].output[0] = "y"
    module = to_module(model)
    assert sorted(module.names.values()) == sorted(ODD_NAMES)
    assert set(module.names) == set(module.state_dict())
    x = torch.zeros(3)
    torch.testing.assert_close(module(x), torch.tensor(sum(tensors.values())))
    for parameter in module.parameters():
        parameter.data.add_(1)
    written = {t.name: numpy_helper.to_array(t) for t in write_back(model, module).graph.initializer}
    assert all(np.allclose(written[name], tensors[name] + 1) for name in ODD_NAMES)


# ------------------------------------------------------------------------------------------------- tensors shared
def fresh_pair(shared_by_identity: bool) -> ModelProto:
    """Two BNs of a network that was never trained: the exporter stored their equal tensors once."""
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    second = "c = BatchNormalization(b, one2, zero2, zero3, one3)" if shared_by_identity else (
        "c = BatchNormalization(b, one, zero, zero, one)")  # fmt: skip
    copies = "one2 = Identity(one) zero2 = Identity(zero) zero3 = Identity(zero) one3 = Identity(one) "
    nodes = f"a = BatchNormalization(x, one, zero, zero, one) b = Relu(a) {second} y = Relu(c)"
    model = net((copies if shared_by_identity else "") + nodes, "float[N, 3] x", "float[N, 3] y",
                {"one": ones, "zero": zeros})  # fmt: skip
    for i, node in enumerate(node for node in model.graph.node if node.op_type == "BatchNormalization"):
        node.name = f"bn{i}"
    return model


@pytest.mark.parametrize("shared_by_identity", [False, True])
def test_what_is_equal_by_accident_is_trained_apart(shared_by_identity: bool) -> None:
    model = fresh_pair(shared_by_identity)
    module = to_module(model).train()
    assert len(list(module.parameters())) == 4
    assert sum(buffer.numel() > 0 for name, buffer in module.named_buffers() if name in module.names) == 4
    feeds = {"x": np.random.default_rng(0).normal(1, 2, (16, 3)).astype(np.float32)}
    unchanged = write_back(model, module)
    assert unchanged == model
    train(module, feeds, 5)
    trained = write_back(model, module)
    onnx.checker.check_model(trained)
    assert error(run(trained, feeds)["y"], forward(module.eval(), feeds)[0].detach()) < 1e-6
    assert len({tuple(value.tolist()) for value in module.state_dict().values()}) == 8
    assert [node.name for node in trained.graph.node if node.op_type == "BatchNormalization"] == ["bn0", "bn1"]


def test_what_is_shared_on_purpose_stays_shared() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    model = net("a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w)", "float[N, 3] x", "float[N, 3] y", {"w": weight})
    module = to_module(model).train()
    assert [name for name, _ in module.named_parameters()] == ["w"]
    train(module, {"x": np.ones((2, 3), np.float32)}, 2)
    assert len(write_back(model, module).graph.initializer) == 1


# ------------------------------------------------------------------------------------------------- write-back
def test_nothing_but_trained_tensors_changes() -> None:
    model = onnx.load(SAMPLES[0])
    chosen = next(t.name for t in model.graph.initializer if len(t.dims) == 4)
    module = to_module(model, train=chosen)  # evaluation mode: statistics stay, too
    train(module, {"input": batch(SAMPLES[0]).numpy()}, 2)
    trained = write_back(model, module)
    changed = [b.name for a, b in zip(model.graph.initializer, trained.graph.initializer, strict=True) if a != b]
    assert changed == [chosen]
    for proto in (model, trained):
        del proto.graph.initializer[:]
    assert trained == model


def test_untouched_module_gives_the_file_back_to_the_byte() -> None:
    for path in SAMPLES:
        assert write_back(path, to_module(path)).SerializeToString() == onnx.load(path).SerializeToString()


def test_weights_in_constant_nodes_come_back() -> None:
    model = parse_model("""<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y) {
        w = Constant<value = float[2, 2] {1, 2, 3, 4}>()
        t = Transpose(w)
        y = MatMul(x, t)
    }""")
    module = to_module(model).train()
    assert [name for name, _ in module.named_parameters()] == ["w"]
    feeds = {"x": np.array([[1, 2]], np.float32)}
    train(module, feeds, 3)
    trained = write_back(model, module)
    assert error(run(trained, feeds)["y"], forward(module, feeds)[0].detach()) < 1e-6
    assert not np.array_equal(numpy_helper.to_array(trained.graph.node[0].attribute[0].t), [[1, 2], [3, 4]])
    assert [node.op_type for node in trained.graph.node] == ["Constant", "Transpose", "MatMul"]


def test_every_front_door_and_state_dicts(tmp_path: Path) -> None:
    import onnx_ir

    module = to_module(SAMPLES[0]).train()
    train(module, {"input": batch(SAMPLES[0]).numpy()}, 1)
    expected = write_back(SAMPLES[0], module)
    assert write_back(onnx.load(SAMPLES[0]), module) == expected
    assert write_back(SAMPLES[0], module.state_dict()) == expected
    assert write_back(SAMPLES[0], torch.nn.DataParallel(module)) == expected
    assert isinstance(write_back(onnx_ir.load(SAMPLES[0]), module), onnx_ir.Model)
    external = tmp_path / "external.onnx"
    onnx.save(onnx.load(SAMPLES[0]), external, save_as_external_data=True, location="weights", size_threshold=100)
    found = write_back(external, to_module(external))
    tensors = [{t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (found, onnx.load(SAMPLES[0]))]
    assert all(np.array_equal(array, tensors[1][name]) for name, array in tensors[0].items())


def _diverged(module: OnnxModule) -> None:
    next(module.parameters()).data[0] = float("nan")


def test_bad_weights_are_refused() -> None:
    module = to_module(SAMPLES[0])
    with pytest.raises(bnfold.ModelError, match="is not in the model; the module was made of another"):
        write_back(SAMPLES[3], module)
    with pytest.raises(bnfold.UsageError, match="Linear is not what to_module gives"):
        write_back(SAMPLES[0], torch.nn.Linear(1, 1))
    wrong = {key: value[:1] for key, value in module.state_dict().items()}
    with pytest.raises(bnfold.ModelError, match=r"has shape \[1.*in the module and"):
        write_back(SAMPLES[0], wrong)
    _diverged(module)
    with pytest.raises(bnfold.ModelError, match="is not finite: the training diverged"):
        write_back(SAMPLES[0], module)


def test_overflow_of_float16_is_refused() -> None:
    model = net("y = Mul(x, w)", "float16[N, 3] x", "float16[N, 3] y", {"w": np.ones(3, np.float16)})
    module = to_module(model).float()
    module.w.data[:] = 2049.5
    trained = numpy_helper.to_array(write_back(model, module).graph.initializer[0])
    assert trained.tolist() == [2050.0] * 3
    module.w.data[0] = 1e6
    with pytest.raises(bnfold.ModelError, match="overflows float16"):
        write_back(model, module)


def test_weights_in_a_data_file_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, trained = tmp_path / "model.onnx", tmp_path / "trained.onnx"
    model = onnx.load(SAMPLES[0])
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    before = path.read_bytes(), (tmp_path / "model.data").read_bytes()
    module = to_module(path)
    for parameter in module.parameters():
        parameter.data += 1
    expected = write_back(path, module)
    files = save_back(path, module, trained)
    assert files[0] == trained and len(files) == 2
    for found, wanted in zip(onnx.load(trained).graph.initializer, expected.graph.initializer, strict=True):
        assert np.array_equal(numpy_helper.to_array(found), numpy_helper.to_array(wanted))
    with pytest.raises(bnfold.OutputError, match="exists"):
        save_back(path, module, trained)
    assert before == (path.read_bytes(), (tmp_path / "model.data").read_bytes())
    monkeypatch.setattr("bnfold.model_file.MAX_FILE_SIZE", path.stat().st_size)
    with pytest.raises(bnfold.ModelError, match=r"model\.onnx: is larger than 2 GiB, .*; use save_back"):
        write_back(path, module)
    save_back(path, module, tmp_path / "large.onnx")


# ---------------------------------------------------------------------------------------------------- control flow
def test_bodies_train() -> None:
    model = parse_model("""<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x, bool cond) => (float[N, 2] y)
    <float[2, 2] w = {1, 2, 3, 4}> {
        three = Constant<value_int: int = 3>()
        always = Constant<value = bool {1}>()
        h = Loop(three, always, x) <body = step (int64 i, bool go, float[N, 2] s) => (bool on, float[N, 2] n) {
            on = Identity(go)
            m = MatMul(s, w)
            n = Tanh(m)
        }>
        y = If(cond) <then_branch = then () => (float[N, 2] a) { a = Mul(h, h) },
                      else_branch = other () => (float[N, 2] b) { b = Neg(h) }>
    }""")
    module = to_module(model).train()
    x = torch.tensor([[0.1, -0.2]])
    for condition in (True, False):
        feeds = {"x": x.numpy(), "cond": np.array(condition)}
        y = module(x, torch.tensor(condition))
        assert error(run(model, feeds)["y"], y.detach()) < 1e-6
    y.sum().backward()
    w = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    (-torch.tanh(torch.tanh(torch.tanh(x @ w) @ w) @ w)).sum().backward()
    torch.testing.assert_close(module.w.grad, w.grad)


def test_local_functions_are_inlined() -> None:
    model = parse_model("""<ir_version: 8, opset_import: ["": 17, "own": 1]> g (float[N, 2] x) => (float[N, 2] y)
    <float[2] s = {2, 3}> {
        h = own.scaled<alpha: float = 0.5>(x, s)
        y = own.scaled<alpha: float = 0.1>(h, s)
    }
    <opset_import: ["": 17], domain: "own"> scaled <alpha>(a, b) => (c) {
        n = LeakyRelu<alpha: float = @alpha>(a)
        c = Mul(n, b)
    }""")
    module = to_module(model)
    feeds = {"x": np.array([[-1, 2]], np.float32)}
    assert error(run(model, feeds)["y"], forward(module, feeds)[0].detach()) < 1e-6
    assert [name for name, _ in module.named_parameters()] == []  # a function's inputs are not known to be weights
    assert "s" in module.state_dict()


# ------------------------------------------------------------------------------------------------------ bad input
def test_without_torch_the_import_says_what_to_install() -> None:
    hidden = "import importlib.util as u; find = u.find_spec; u.find_spec = lambda n, *a: n != 'torch' and find(n, *a) "
    code = f"{hidden}or None\nimport bnfold.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode and done.stderr.endswith("bnfold.torch needs torch: pip install 'bnfold[torch]'\n")


def test_unknown_operators_are_named_all_at_once() -> None:
    model = parse_model("""<ir_version: 8, opset_import: ["": 17, "far": 1]> g (float[2] x) => (float[2] y) {
        a = far.Magic(x)
        b = far.Magic(a)
        y = StringNormalizer(b)
    }""")
    with pytest.raises(bnfold.ModelError) as caught:
        to_module(model)
    assert str(caught.value) == (
        "has operators that bnfold.torch doesn't compute: StringNormalizer (1 node, first 'y'), "
        "far::Magic (2 nodes, first 'a')"
    )


def test_invalid_models_are_refused_with_the_node(tmp_path: Path) -> None:
    with pytest.raises(bnfold.ModelError, match="no such file"):
        to_module(tmp_path / "none.onnx")
    wrong = net("y = Identity(x)", "float[2] x", "float[2] y", {"a": np.ones(2, np.int64), "b": np.ones(3, np.int64)})
    wrong.graph.node.insert(0, helper.make_node("Add", ["a", "b"], ["c"], name="sum"))
    with pytest.raises(bnfold.ModelError, match="node 'sum': Add can't be computed"):
        to_module(wrong)


def test_random_inputs_of_a_model_are_not_changed() -> None:
    """Outputs may share memory with inputs, but no operator writes into one."""
    model = onnx.load(SAMPLES[1])
    feeds = drawn(model, 0).batches[0]
    x = torch.from_numpy(feeds["input"].copy())
    to_module(model).train()(x)
    assert np.array_equal(x.numpy(), feeds["input"])


@pytest.mark.slow
def test_example_of_a_whole_life(tmp_path: Path) -> None:
    """Insert, train, recalibrate, fold, verify on the sample data; a few steps."""
    command = [sys.executable, str(REPO / "examples" / "mnist_life_cycle.py"), "--steps", "300", "--out", str(tmp_path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPO).stdout
    assert "verdict  equal" in told
    plain, folded = (onnx.load(tmp_path / f"{name}.onnx") for name in ("plain", "folded"))
    assert [node.op_type for node in folded.graph.node] == [node.op_type for node in plain.graph.node]
    accuracy = [float(line.split("%")[0].split()[-1]) for line in told.splitlines()[-2:]]
    assert accuracy[1] > 80  # with BN it has learnt by then, whatever it has without
