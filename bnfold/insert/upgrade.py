"""The opset that an insertion takes, and the way to it."""

from __future__ import annotations

from onnx import ModelProto, helper

from bnfold.errors import ModelError
from bnfold.frontends import naming
from bnfold.model_file import LoadedModel, to_proto, wrap

# From here on a BN with one output is in inference mode, and shapes align as in numpy.
LOWEST = 7
# The first that has the attribute training_mode.
TRAINING = 14


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operator set; 1 if the model names none."""
    return next((int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 1)


def demand_opset(model: LoadedModel, training: bool, upgrade: bool) -> LoadedModel:
    """The model itself, or converted where its opset is too low and `upgrade` allows it.

    Raises: ModelError.
    """
    opset, needed = opset_of(model.proto), TRAINING if training else LOWEST
    if opset >= needed:
        return model
    if upgrade:
        return _converted(model, needed)
    what = "BatchNormalization in training mode" if opset >= LOWEST else "BatchNormalization as it is understood today"
    raise ModelError(f"is of opset {opset}; {what} takes {needed}: --upgrade converts the model")


def _converted(model: LoadedModel, opset: int) -> LoadedModel:
    from onnx import version_converter  # noqa: TID251 (the user asks for it)

    proto = to_proto(model)
    try:
        converted = version_converter.convert_version(proto, opset)
    except Exception as error:  # it raises what it likes
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"onnx's version converter can't bring it to opset {opset}: {lines[0][:200]}") from error
    converted.ir_version = max(converted.ir_version, helper.find_min_ir_version_for(list(converted.opset_import)))
    with naming(model.path):
        return _at(wrap(converted), model)


def _at(converted: LoadedModel, model: LoadedModel) -> LoadedModel:
    return LoadedModel(converted.proto, converted.weights, model.path)
