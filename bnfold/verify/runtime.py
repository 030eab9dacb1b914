"""Running models on ONNX Runtime, and the surgery on their graphs that looking inside of them takes.

Sessions have ONNX Runtime's optimisations off, always: its own rewrites are wrong in places, and would be judged
as part of the file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from bnfold.constants import Array
from bnfold.errors import UsageError, quoted
from bnfold.graph import declared
from bnfold.inference import infer_shapes
from bnfold.verify.large import Model, parted

Feeds = dict[str, Array]

PROVIDERS = {
    "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider",
}  # fmt: skip

# Threads that ONNX Runtime may use for a model; without it as many as there are cores.
THREADS = "BNFOLD_THREADS"

# What turns ONNX Runtime's telemetry off.
TELEMETRY = "ORT_DISABLE_TELEMETRY"

# A value fed into a cut goes by this name and its own.
CUT = "bnfold cut: "
# From so many nodes on, what ONNX Runtime saves by giving a value the memory of another takes it longer than all else:
# loading 6,200 nodes took 3.9 s of CPU with it and 0.4 s without.  Real networks have fewer, in double too.
MANY_NODES = 4000


class CannotRun(Exception):
    """A model can't be run; the message says why."""


class Runner:
    """A session of a model.

    Args:
        model: it is the same afterwards; or the path of one.
        names: the values to compute, of a model in memory inner ones too; none: all outputs.
        provider: one of `PROVIDERS`.
        optimized: whether ONNX Runtime may optimise it.

    Attributes:
        inputs: names of what `run` has to be fed.
        names: what it computes.

    Raises: CannotRun.
    """

    def __init__(
        self, model: Model | ModelProto | str, names: Sequence[str] = (), provider: str = "cpu", optimized: bool = False
    ) -> None:
        self._fed: dict[str, Array] = {}
        if isinstance(model, str):
            self.session = _session(model, {}, provider, optimized)
        else:
            model = model if isinstance(model, Model) else parted(model)
            proto, beside = _with_outputs(model, names), dict(model.beside)
            if provider == "cpu" and not optimized:  # an initializer would be copied, an input is read where it is
                self._fed = {name: array for name, array in beside.items() if array.dtype.kind == "f"}
                _as_inputs(proto.graph, self._fed)
            kept = {name: array for name, array in beside.items() if name not in self._fed}
            self.session = _session(proto, kept, provider, optimized)
        self.ports = [given for given in self.session.get_inputs() if given.name not in self._fed]
        self.inputs = [given.name for given in self.ports]
        self.names = list(names) or [output.name for output in self.session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        """The values asked for; feeds that the model has no input for are left out.

        Raises: CannotRun.
        """
        try:
            given = {name: feeds[name] for name in self.inputs if name in feeds} | self._fed
            # An input that is an output too: some versions return memory that they free.
            made = [name for name in self.names if name not in given]
            values = dict(zip(made, self.session.run(made, given) if made else [], strict=True))
            return {name: given[name] if name in given else values[name] for name in self.names}
        except Exception as error:
            raise CannotRun(f"ONNX Runtime can't run it: {first_line(error)}") from error

    def run_into(self, feeds: Mapping[str, Array], places: Mapping[str, Array]) -> Feeds:
        """The same, on the CPU, with some of the values written to arrays of their shape and type.

        Raises: CannotRun, also if one of them has another shape.
        """
        try:
            binding = self.session.io_binding()
            for name in self.inputs:
                if name in feeds:
                    binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name]))
            for name in self.names:
                if name in places:
                    place = places[name]
                    binding.bind_output(name, "cpu", 0, place.dtype, place.shape, place.ctypes.data)
                else:
                    binding.bind_output(name)
            self.session.run_with_iobinding(binding)
            values = zip(self.names, binding.get_outputs(), strict=True)
            return {name: places[name] if name in places else value.numpy() for name, value in values}
        except Exception as error:
            raise CannotRun(f"ONNX Runtime can't run it: {first_line(error)}") from error


def _with_outputs(model: Model, names: Iterable[str]) -> ModelProto:
    """A copy with more outputs."""
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    shown = {info.name for info in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in shown)
    return proto


def _as_inputs(graph: GraphProto, names: Container[str]) -> None:
    """Make inputs of initializers."""
    kept: list[TensorProto] = []
    fed: list[TensorProto] = []
    for tensor in graph.initializer:
        (fed if tensor.name in names else kept).append(tensor)
    shown = {info.name for info in graph.input}
    graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in fed if tensor.name not in shown
    )  # fmt: skip
    if fed:
        del graph.initializer[:]
        graph.initializer.extend(kept)


def onnxruntime_module() -> Any:
    """onnxruntime, without its telemetry: that opens a database in the user's home and a connection to its maker.

    It is asked once, when it is imported; a user who has set the variable, or imported it before, has decided.
    (Official builds from 1.31 on: Privacy.md beside it.)

    Raises: ImportError.
    """
    mine = TELEMETRY not in os.environ and "onnxruntime" not in sys.modules
    if mine:
        os.environ[TELEMETRY] = "1"
    try:
        import onnxruntime
    finally:
        if mine:
            del os.environ[TELEMETRY]
    return onnxruntime


def _session(model: ModelProto | str, beside: Mapping[str, Array], provider: str, optimized: bool) -> Any:
    try:
        onnxruntime = onnxruntime_module()
    except ImportError as error:
        raise CannotRun(f"ONNX Runtime can't be imported: {first_line(error)}") from error

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # sessions are many and short
    options.enable_cpu_mem_arena = optimized  # it keeps what a session ever took for as long as that lives
    options.enable_mem_pattern = not optimized  # it holds a second set of activations: 50 MB of a resnet18's 190
    if not optimized:  # a second copy of the weights, laid out for speed
        options.add_session_config_entry("session.disable_prepacking", "1")
    # The CPU computes what another provider has no kernel for.
    providers = [PROVIDERS[provider], *([] if provider == "cpu" else [PROVIDERS["cpu"]])]
    options.enable_mem_reuse = isinstance(model, str) or len(model.graph.node) < MANY_NODES
    try:
        if isinstance(model, str):
            return onnxruntime.InferenceSession(model, options, providers=providers)
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in beside.values()]
        options.add_external_initializers(list(beside), values)
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise CannotRun(f"ONNX Runtime can't load it: {first_line(error)}") from error


def threads() -> int:
    """How many threads a session may use; 0: ONNX Runtime decides.

    Raises: UsageError.
    """
    wanted = os.environ.get(THREADS, "")
    if wanted and not (wanted.isascii() and wanted.isdigit()):
        raise UsageError(f"the environment's {THREADS} is a number of threads, not {quoted(wanted)}")
    return int(wanted or 0)


def available_providers() -> list[str]:
    """Those of `PROVIDERS` that the installed ONNX Runtime has."""
    try:
        onnxruntime = onnxruntime_module()
    except ImportError:
        return []
    present = onnxruntime.get_available_providers()
    return [name for name, full in PROVIDERS.items() if full in present]


def demand_providers(*names: str) -> None:
    """Raises: UsageError if one of them is none, or the installed ONNX Runtime hasn't got it."""
    present = available_providers()
    for name in names:
        if name not in PROVIDERS:
            raise UsageError(f"{quoted(name)} is no provider; choose from {', '.join(PROVIDERS)}")
        if name not in present and name != "cpu":
            raise UsageError(f"this ONNX Runtime has no provider {quoted(name)}; it has {', '.join(present) or 'none'}")


def optimised_by_runtime(model: ModelProto) -> ModelProto:
    """The model as ONNX Runtime's optimiser leaves it at the level BASIC: the last one that writes standard ops.

    Raises: CannotRun.
    """
    import tempfile
    from pathlib import Path

    onnxruntime = onnxruntime_module()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(target)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDERS["cpu"]])
        except Exception as error:
            raise CannotRun(f"ONNX Runtime can't optimise it: {first_line(error)}") from error
        result = ModelProto()
        result.ParseFromString(target.read_bytes())
        return result


def first_line(error: BaseException) -> str:
    """An error message as part of a line."""
    text = str(error).strip().splitlines()
    return "".join(c if c.isprintable() else " " for c in (text[0] if text else type(error).__name__))[:200]


# -- graphs -----------------------------------------------------------------------------------------


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside of If, Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def reads(node: NodeProto) -> set[str]:
    """Names of all that a node reads, what its bodies capture included."""
    found = {name for name in node.input if name}
    for body in bodies(node):
        own = {info.name for info in body.input} | {tensor.name for tensor in body.initializer}
        for inner in body.node:
            found |= reads(inner) - own
            own.update(inner.output)
        found |= {info.name for info in body.output} - own
    return found


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """The node of each value that nodes of the main graph make."""
    return {name: node for node in graph.node for name in node.output if name}


def cut_model(
    model: Model, cuts: Mapping[str, int], wanted: Sequence[str], loose: Container[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Model:  # fmt: skip
    """What it takes to compute `wanted` when the values `cuts` are given; see `Cutter.cut`."""
    return Cutter(model).cut(cuts, wanted, loose, shapes)


class Cutter:
    """Cuts parts out of a model: made once, it finds each in a time that the part's size alone counts for.

    Args:
        model: one flat graph; names and nodes stay as they are.
    """

    def __init__(self, model: Model) -> None:
        graph = model.graph
        self._model = model
        self._made_by = producers(graph)
        self._nodes = list(graph.node)  # held, so that their ids stay theirs
        self._place = {id(node): place for place, node in enumerate(self._nodes)}
        self._tensors = {tensor.name: (place, tensor) for place, tensor in enumerate(graph.initializer)}
        self._inputs = {info.name for info in graph.input}

    def cut(
        self, cuts: Mapping[str, int], wanted: Sequence[str], loose: Container[str] = (),
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> Model:  # fmt: skip
        """What it takes to compute `wanted` when the values `cuts` are given.

        Whoever reads a cut value reads an input of the name `CUT` + its own; its producer still makes it, if that is
        wanted.

        Args:
            cuts: the values given, with their element types.
            wanted: the values to compute; they become the outputs.
            loose: initializers that become inputs.
            shapes: of the values given, as far as they are known: a Scan must know them.
        """
        model, graph, shapes = self._model, self._model.graph, shapes or {}
        renamed = {name: CUT + name for name in cuts}
        needed, given = _needed(self._made_by, renamed, wanted)
        result = ModelProto(ir_version=model.proto.ir_version)
        result.opset_import.extend(model.proto.opset_import)
        result.functions.extend(model.proto.functions)
        result.graph.name = graph.name or "cut"
        for place in sorted(self._place[one] for one in needed):
            copy = result.graph.node.add()
            copy.CopyFrom(self._nodes[place])
            _rename_reads(copy, renamed)
        result.graph.sparse_initializer.extend(graph.sparse_initializer)
        if given & self._inputs:
            result.graph.input.extend(info for info in graph.input if info.name in given)
        for name in sorted(given & set(renamed)):
            result.graph.input.append(onnx.helper.make_tensor_value_info(CUT + name, cuts[name], shapes.get(name)))
        for _, tensor in sorted((self._tensors[name] for name in given if name in self._tensors), key=itemgetter(0)):
            if tensor.name in loose:
                info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                result.graph.input.append(info)
            else:
                result.graph.initializer.append(tensor)
        made = (name for name in wanted if name in self._made_by)
        result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        kept = {tensor.name for tensor in result.graph.initializer}
        return Model(result, {name: array for name, array in model.beside.items() if name in kept})


def _needed(
    made_by: Mapping[str, NodeProto], cuts: Container[str], wanted: Iterable[str]
) -> tuple[dict[int, NodeProto], set[str]]:
    """Nodes behind `wanted`, by their ids, and the names that they read but none of them makes."""
    nodes: dict[int, NodeProto] = {}
    given: set[str] = set()
    waiting = [made_by[name] for name in wanted if name in made_by]
    while waiting:
        node = waiting.pop()
        if id(node) in nodes:
            continue
        nodes[id(node)] = node
        for name in reads(node):
            if name in cuts or name not in made_by:
                given.add(name)
            else:
                waiting.append(made_by[name])
    return nodes, given


def _rename_reads(node: NodeProto, names: Mapping[str, str]) -> None:
    """Rename what a node reads, in its bodies too, but for what these call so themselves."""
    for index, name in enumerate(node.input):
        node.input[index] = names.get(name, name)
    for body in bodies(node):
        own = set(declared(body))
        outer = {old: new for old, new in names.items() if old not in own} if own & names.keys() else names
        for inner in body.node:
            _rename_reads(inner, outer)
        for info in body.output:
            if info.name in outer:
                body.node.append(onnx.helper.make_node("Identity", [outer[info.name]], [info.name]))


def frontier(
    made_by: Mapping[str, NodeProto], cuts: Container[str], wanted: Iterable[str]
) -> tuple[set[str], list[NodeProto]]:
    """The given values (cuts, graph inputs, initializers) that a segment begins at, and its nodes, in no order."""
    nodes, given = _needed(made_by, cuts, wanted)
    return given, list(nodes.values())


def element_types(model: Model) -> dict[str, int]:
    """TensorProto data types of values, as far as they can be inferred."""
    found = infer_shapes(model.proto).graph
    infos = (*found.input, *found.value_info, *found.output)
    return {info.name: info.type.tensor_type.elem_type for info in infos}


def static_shapes(model: Model, feeds: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of values for inputs of the shapes of `feeds`, as far as they can be inferred."""
    copy = _with_outputs(model, ())
    del copy.graph.value_info[:]
    for info in copy.graph.output:
        info.type.tensor_type.ClearField("shape")
    for info in copy.graph.input:
        if info.name in feeds:
            del info.type.tensor_type.shape.dim[:]
            for size in feeds[info.name].shape:
                info.type.tensor_type.shape.dim.add().dim_value = size
    copy = infer_shapes(copy)  # the rest comes from a run
    found = {}
    for info in (*copy.graph.input, *copy.graph.value_info, *copy.graph.output):
        tensor = info.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            found[info.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return found
