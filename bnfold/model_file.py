"""Reading and writing ONNX files without holding their weights, and without ever losing one.

`load` maps the file, walks its wire format down to the tensors, and parses what is left when every
large `raw_data` has been replaced by a short token (`bnfold.weights`); external tensors become
tokens too.  What comes out is an ordinary ModelProto of a few hundred KB that is edited in place.
`save` serialises it, puts the bytes back behind the tokens, copied from the map or made on the
spot, and makes model and data file appear in one step (`bnfold.atomic`).  So memory is a few
blocks, time is that of a copy, and a canonically serialised file that nobody edited is written
byte for byte as it was.

    model = load("model.onnx")
    weights = model.weights.read(model.proto.graph.initializer[0])     # a view of the file
    save(model, "copy.onnx")
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto

from bnfold.atomic import Publication, check_output, data_names, write_failure
from bnfold.errors import ModelError, OutputError, TooLargeError
from bnfold.external import DataFolder, NewDataFile, clear_away, locations
from bnfold.mapped import MappedFile, Refused, lookalike
from bnfold.weights import LARGE, Source, Stored, Weights, demand_content, demand_description, external_unknown
from bnfold.wire import WireError, leading_to, rewrite, tensors

__all__ = ["LoadedModel", "Weights", "load", "save", "structure", "to_proto", "wrap"]

# Protobuf's own limit for one message.
MAX_FILE_SIZE = 2**31 - 1


@dataclass
class LoadedModel:
    """A model as it is being worked on.

    Attributes:
        proto: its structure; large tensors hold a token as raw_data, to be read through `weights`.
        weights: the content of its tensors.
        path: the file it came from, None for a model made in memory.
        notices: what `save` has to tell the user besides its result.
    """

    proto: ModelProto
    weights: Weights
    path: Path | None
    notices: list[str] = field(default_factory=list)

    def copy(self) -> LoadedModel:
        """To be edited; it holds no weights of its own."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        return LoadedModel(proto, self.weights, self.path)


def load(path: str | os.PathLike[str]) -> LoadedModel:
    """Open the model at `path`: its structure is read, its weights are not.

    External data is looked for in the folder that `path` names.

    Raises: ModelError if it isn't a sound ONNX file, ExternalDataError if a data file isn't in order.
    """
    path = Path(path)
    weights = Weights()
    try:
        file = MappedFile.open(path)
    except Refused as why:
        raise ModelError(str(why), file=path) from None
    model = LoadedModel(_parse(file, weights), weights, path)
    _take_stock(model, DataFolder(path.parent, weights, file))
    return model


def data_files(models: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The data files that the models among these files keep tensors in; they need not be sound."""
    return [Path(path).parent / name for path in models if os.path.isfile(path) for name in _data_of(Path(path))]


def wrap(
    proto: ModelProto, base_dir: str | os.PathLike[str] | None = None, weights: Weights | None = None
) -> LoadedModel:
    """A model that is in memory already.

    Args:
        proto: used as it is, not copied.
        base_dir: the folder of its external data, if it has any that isn't loaded; these tensors
            become references in `proto`.  Without it they stay as they are and can't be read.
        weights: what tokens in it stand for, if there are any.

    Raises: ModelError, ExternalDataError as `load` does.
    """
    weights = weights or Weights()
    model = LoadedModel(proto, weights, None)
    _take_stock(model, None if base_dir is None else DataFolder(Path(base_dir), weights, None))
    return model


def structure(model: LoadedModel) -> ModelProto:
    """A copy of the proto without the content of large tensors: all that shape inference needs."""
    serialised = _serialise(model.proto, model.path)
    has_token = leading_to(model.weights.token_positions(serialised))

    def is_large(start: int, stop: int) -> bool:
        return stop - start >= LARGE or has_token(start, stop)

    proto = ModelProto()
    proto.ParseFromString(b"".join(rewrite(memoryview(serialised), is_large, lambda *_: None)))
    return proto


def to_proto(model: LoadedModel) -> ModelProto:
    """A copy of the model that holds all of its tensors.

    Raises: TooLargeError if that takes more than 2 GiB, ExternalDataError if tensors are out of reach.
    """
    _demand_within_reach(model)
    if sum(piece.nbytes for piece in _pieces(model, model.proto)) > MAX_FILE_SIZE:
        what = "is larger than 2 GiB, which no protobuf can hold; save it to a file instead"
        raise TooLargeError(what, file=model.path)
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    for tensor, _ in tensors(proto):
        if source := model.weights.source(tensor):
            tensor.raw_data = b"".join(source.blocks())
    return proto


def save(
    model: LoadedModel,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    keep_mode_of: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Write the model to `path`, and a data file beside it where it needs one.

    Tensors that were external stay external, in one new file named ``<output>.data`` (or
    ``<output>.1.data`` … where that name is taken: an output that is being replaced must stay whole
    until it is).  So do the large tensors of a model that has outgrown 2 GiB.

    The output appears whole or not at all, and only the name `path` changes hands: where that is a
    symbolic link, the link is replaced and the file that it led to stays.  The data files of a
    replaced model are deleted if their names start with the output's and neither the input nor another
    model (*.onnx) of the folder is using them; of others a notice tells that they are no longer used.

    Args:
        model: the model; it stays usable.
        path: where to; the folder must exist.
        overwrite: whether an existing file may be replaced, the model's own included.
        keep_mode_of: the file whose permissions the output gets; by default the replaced file, and
            for a new one what the umask says.

    Returns: the files that the output consists of, the model first.

    Raises: OutputError; whatever goes wrong, the input and an earlier output stay as they were.
    """
    path = Path(path)
    _demand_within_reach(model)
    _demand_unchanged(model)
    replaced = check_output(path, overwrite, model.weights.files(external_only=True))
    link = os.readlink(path) if path.is_symlink() else None
    try:
        old_data = _data_of(path) if replaced else []
        with Publication(path.parent, os.stat(keep_mode_of) if keep_mode_of is not None else replaced) as output:
            proto, data = _with_data_file(model)
            files = [path]
            if data is not None:
                earlier = [name for name in old_data if name.startswith(path.name + ".")]
                files.append(output.add(output.write(data.blocks()), chain(earlier, data_names(path.name))))
                data.set_location(files[1].name)
            written = output.write(_blocks(_pieces(model, proto)))
            _demand_unchanged(model)
            output.publish(written, path, overwrite=overwrite)
    except FileExistsError:
        raise OutputError("exists already; --force replaces it", file=path) from None
    except UnicodeEncodeError:
        raise OutputError("its name isn't UTF-8, so the model can't name its data file", file=path) from None
    except OSError as error:
        raise OutputError(write_failure(error), file=path) from error
    if link:
        model.notices.append(f"{path}: was a link to {link}, which is unchanged")
    in_place = model.path is not None and os.path.exists(model.path) and os.path.samefile(model.path, path)
    unused = [path.with_name(name) for name in old_data if path.with_name(name) not in files]
    if unused:  # a copy of the old model reads them, too
        shared = data_files(other for other in path.parent.glob("*.onnx") if other.name != path.name)
        unused = [file for file in unused if file not in shared]
    for left in clear_away(unused, f"{path.name}.", [] if in_place else model.weights.files()):
        model.notices.append(f"{left}: no longer used by {path.name}; delete it if nothing else needs it")
    return files


def _parse(file: MappedFile, weights: Weights) -> ModelProto:
    """The structure of a mapped model, tokens in the place of large raw_data."""

    def token(start: int, stop: int) -> memoryview:
        return memoryview(weights.token(Stored(stop - start, False, file, start)))

    proto = ModelProto()
    try:
        if not len(file.view):
            raise WireError("it is empty")
        pieces = rewrite(file.view, lambda start, stop: stop - start >= LARGE, token)
        if len(file.view) > MAX_FILE_SIZE:
            raise WireError("it is larger than 2 GiB, which protobuf can't hold; such weights belong in a data file")
        proto.ParseFromString(b"".join(pieces))
        if not proto.HasField("graph"):
            raise WireError("it holds no graph")
    except (WireError, DecodeError) as error:
        why = error if isinstance(error, WireError) else "it is damaged, or nested too deep for protobuf"
        known = lookalike(bytes(file.view[:64]))
        raise ModelError(known or f"is not an ONNX model, or not all of one: {why}", file=file.path) from None
    return proto


def _take_stock(model: LoadedModel, folder: DataFolder | None) -> None:
    """Find external tensors, and see that each tensor has the bytes that it should: tells all that haven't."""
    found = (_problem(tensor, node, model.weights, folder) for tensor, node in tensors(model.proto))
    problems = [problem for problem in found if problem is not None]
    if folder is not None:
        problems += folder.overlaps()
    if problems:
        first, *others = problems
        raise type(first)(first.what, file=model.path, where=first.where, others=map(str, others))


def _problem(
    tensor: TensorProto, node: NodeProto | None, weights: Weights, folder: DataFolder | None
) -> ModelError | None:
    """What is wrong with a tensor; an external one becomes a reference."""
    try:
        demand_description(tensor, node)
        if tensor.data_location != TensorProto.EXTERNAL:
            demand_content(tensor, node, weights)
        elif folder is not None:
            folder.adopt(tensor, node)
    except ModelError as error:
        return error
    return None


def _serialise(proto: ModelProto, path: Path | None) -> bytes:
    try:
        serialised: bytes = proto.SerializeToString()
        return serialised
    except (EncodeError, ValueError):
        what = "is larger than 2 GiB in memory; save it with external data, and give the path of that file"
        raise ModelError(what, file=path) from None


def _pieces(model: LoadedModel, proto: ModelProto) -> list[memoryview | Source]:
    """The file of `proto`, a version of the model's own: serialised, sources in the place of tokens."""
    serialised = _serialise(proto, model.path)
    positions = model.weights.token_positions(serialised)
    found: list[Source] = []

    def source(start: int, stop: int) -> Source:
        if (one := model.weights.resolve(serialised[start:stop])) is None:
            raise RuntimeError("internal error in bnfold: part of a token in a tensor; please report it")
        found.append(one)
        return one

    pieces = rewrite(memoryview(serialised), leading_to(positions), source)
    if len(found) != len(positions):
        raise RuntimeError("internal error in bnfold: a token outside of a tensor's raw_data; please report it")
    return pieces


def _blocks(pieces: list[memoryview | Source]) -> Iterator[memoryview]:
    for piece in pieces:
        if isinstance(piece, memoryview):
            yield piece
        else:
            yield from piece.blocks()


def _with_data_file(model: LoadedModel) -> tuple[ModelProto, NewDataFile | None]:
    """The proto to be written, and the data file that it needs (without a name yet), if it does."""
    pieces = _pieces(model, model.proto)
    too_large = sum(piece.nbytes for piece in pieces) > MAX_FILE_SIZE
    if not too_large and not any(piece.external for piece in pieces if not isinstance(piece, memoryview)):
        return model.proto, None
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    return proto, NewDataFile.take(proto, model.weights, all_large=too_large)


def _demand_within_reach(model: LoadedModel) -> None:
    """Raises: ExternalDataError if a model made in memory has tensors in files that can't be found."""
    if model.path is None:  # `load` leaves none
        for tensor, _ in tensors(model.proto):
            if tensor.data_location == TensorProto.EXTERNAL:
                raise external_unknown(tensor)


def _demand_unchanged(model: LoadedModel) -> None:
    """Raises: ModelError if a file that the model was loaded from isn't what it was."""
    for file in model.weights.files():
        if file.has_changed():
            raise ModelError("was changed by another program while it was being read; try again", file=file.path)


def _data_of(path: Path) -> list[str]:
    """The data files beside `path` that the file there refers to, if it is a model (it need not be sound)."""
    try:
        named = locations(_parse(MappedFile.open(path), Weights()))
    except (Refused, ModelError):
        return []
    plain = (name for name in named if isinstance(name, str) and name.isprintable() and os.path.basename(name) == name)
    return sorted(name for name in plain if os.path.isfile(path.parent / name))
