"""Where samples come from: every kind of source gives the same batches, and what is wrong is told with its place."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnfold.errors import UsageError
from bnfold.inspection import Port
from bnfold.recalibrate import data as recalibration_data
from bnfold.recalibrate.data import Data, open_data, open_labelled
from bnfold.recalibrate.images import ImageOptions

ROWS = 150
X = np.random.default_rng(0).random((ROWS, 3, 4, 4)).astype(np.float32)
PORT = Port("x", "float32", (None, 3, 4, 4))
PAIR = (Port("a", "float32", ("n", 2)), Port("b", "int64", ("n",)))


def gathered(data: Data, name: str = "x") -> np.ndarray[Any, Any]:
    return np.concatenate([batch[name] for batch in data.batches()])


def sizes(data: Data) -> list[int]:
    return [len(next(iter(batch.values()))) for batch in data.batches()]


def in_order(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values[np.lexsort(values.reshape(len(values), -1).T)]


class Tensor:
    """What is known of a torch tensor."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array, self.dtype = array, "torch's"

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> np.ndarray[Any, Any]:
        return self.array


class Reader:
    """ONNX Runtime's CalibrationDataReader."""

    def __init__(self, step: int = 1) -> None:
        self.step, self.at = step, 0

    def get_next(self) -> dict[str, Any] | None:
        self.at += self.step
        return None if self.at > ROWS else {"x": X[self.at - self.step : self.at]}

    def rewind(self) -> None:
        self.at = 0


class Loader:
    """A DataLoader: begins anew each time it is iterated over."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, ROWS, self.size):
            yield [Tensor(X[start : start + self.size]), Tensor(np.zeros(self.size))]


class Dataset:
    """A torch Dataset: a length and items, and nothing else."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> Any:
        return Tensor(X[index]), 3


class IterableDataset(Dataset):
    """A torch IterableDataset: it inherits a `__getitem__` that raises."""

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return singles()


def singles() -> Iterator[Any]:
    for sample in X:
        yield sample, 7


SOURCES = {
    "array": X,
    "tensor": Tensor(X),
    "dict of arrays": {"x": X},
    "list of arrays": [X[:100], X[100:]],
    "list of dicts": [{"x": X[:1], "y": 0}, {"x": X[1:]}],
    "list of single samples": list(X),
    "dataset": Dataset(),
    "iterable dataset": IterableDataset(),
    "generator function": singles,
    "function that makes a list": lambda: [X],
    "loader of small batches": Loader(10),
    "loader of large batches": Loader(130),
    "nested tuples": [((X[:3],), 1), ((X[3:],), 1)],
    "reader": Reader(),
    "reader's class": Reader,
    "big-endian": X.astype(">f4"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_python_sources(kind: str) -> None:
    data = open_data(SOURCES[kind], [PORT])
    for _ in range(2):
        batches = [batch["x"] for batch in data.batches()]
        assert [len(batch) for batch in batches] == [64, 64, 22]
        if kind in ("array", "list of single samples", "dataset"):  # sorted by class, perhaps
            assert not np.array_equal(np.concatenate(batches), X)
        assert np.array_equal(in_order(np.concatenate(batches)), in_order(X))
        assert all(batch.dtype.str == np.dtype(np.float32).str for batch in batches)
    assert data.notices == []


def write_npy(folder: Path) -> str:
    np.save(folder / "x.npy", X)
    return str(folder / "x.npy")


def write_fortran(folder: Path) -> str:
    np.save(folder / "x.npy", np.asfortranarray(X))
    return str(folder / "x.npy")


def write_npz(folder: Path) -> str:
    np.savez(folder / "d.npz", x=X, y=np.arange(ROWS))
    return str(folder / "d.npz")


def write_compressed(folder: Path) -> str:
    np.savez_compressed(folder / "d.npz", other=X, y=np.arange(ROWS))
    return f"{folder / 'd.npz'}:other"


def write_colon(folder: Path) -> str:
    np.savez(folder / "a:b.npz", only=X)
    return str(folder / "a:b.npz")


def write_folder(folder: Path) -> str:
    np.save(folder / "1.npy", X[:70])
    np.savez(folder / "2.npz", x=X[70:100])
    np.savez_compressed(folder / "3.npz", x=X[100:149])
    np.save(folder / "4.npy", X[149])  # a sample by itself
    return str(folder)


def write_script(folder: Path) -> str:
    np.save(folder / "x.npy", X)
    (folder / "neighbour.py").write_text("import numpy as np, os\nX = np.load(os.path.dirname(__file__) + '/x.npy')\n")
    (folder / "loader.py").write_text("from neighbour import X\ndef make():\n    yield from X\nclass A:\n    b = X\n")
    return f"{folder / 'loader.py'}:make"


FILES = (write_npy, write_fortran, write_npz, write_compressed, write_colon, write_folder, write_script)


@pytest.mark.parametrize("write", FILES, ids=lambda write: write.__name__)
def test_files(tmp_path: Path, write: Any) -> None:
    data = open_data(write(tmp_path), [PORT])
    for _ in range(2):
        assert np.array_equal(in_order(gathered(data)), in_order(X))


def test_module_and_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_script(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert open_data("loader:A.b", [PORT]).count == ROWS


def test_seed_makes_the_order() -> None:
    first, again, other = (gathered(open_data(X, [PORT], seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("source", [X, singles, Loader(10)], ids=["array", "generator", "loader"])
def test_samples_and_short_batches(source: Any) -> None:
    # A few left over go with the batch before; nothing else is larger than asked for.
    for samples, batch, expected in ((128, 64, [64, 64]), (130, 64, [64, 66]), (136, 64, [64, 64, 8]), (5, 64, [5]),
                                     (5, 2, [2, 3]), (3, 1, [1, 1, 1]), (None, 150, [150])):  # fmt: skip
        data = open_data(source, [PORT], samples=samples, batch_size=batch)
        assert sizes(data) == expected
        assert data.count in (samples or ROWS, None)
        assert any("few" in notice for notice in data.notices) == ((samples or ROWS) < 128)


@pytest.mark.parametrize("source", [X, singles, Loader(7)], ids=["array", "generator", "loader"])
def test_fixed_batch_of_the_model_counts(source: Any) -> None:
    data = open_data(source, [Port("x", "float32", (40, 3, 4, 4))], batch_size=8)
    assert sizes(data) == [40, 40, 40]
    assert data.notices == ["120 samples are few: from 128 on, better 256, statistics are good",
                            "30 samples were left over: the model takes 40 at a time"]  # fmt: skip


def test_several_inputs(tmp_path: Path) -> None:
    a, b = np.arange(40, dtype=np.float32).reshape(20, 2), np.arange(20)
    np.savez(tmp_path / "d.npz", b=b, a=a)
    sources = {"a": a, "b": b}, [(a, b)], [(a[i], b[i]) for i in range(20)], [((a, b), 3)], str(tmp_path / "d.npz")
    for source in sources:
        for batch in open_data(source, PAIR, batch_size=6).batches():
            assert np.array_equal(batch["a"][:, 0], 2 * batch["b"])


def test_samples_of_several_sizes_stay_apart() -> None:
    source = iter([X[:10], X[10:20], X[20:30, :, :2]])
    port = Port("x", "float32", ("n", 3, "h", 4))
    assert [batch["x"].shape for batch in open_data(source, [port]).batches()] == [(20, 3, 4, 4), (10, 3, 2, 4)]


def test_iterator_goes_once() -> None:
    data = open_data(iter(X), [PORT])
    assert sizes(data) == [64, 64, 22]
    with pytest.raises(UsageError, match="only once"):
        sizes(data)


def test_labels_hold_samples_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=np.arange(ROWS))
    for samples, used in ((None, 113), (100, 100)):
        data = open_data(str(tmp_path / "d.npz"), [PORT], labels="y", samples=samples)
        assert data.held_out is not None
        assert (data.count, data.held_out.count) == (used, ROWS - used)
        pairs = list(data.held_out.labelled())
        assert all(np.array_equal(batch["x"], X[labels]) for batch, labels in pairs)
        rest = np.concatenate([labels for _, labels in pairs])
        assert np.array_equal(in_order(np.concatenate([gathered(data), X[rest]])), in_order(X))
    with pytest.raises(UsageError, match="none are left"):
        open_data(str(tmp_path / "d.npz"), [PORT], labels="y", samples=ROWS)
    assert open_labelled(str(tmp_path / "d.npz"), [PORT], "y").count == ROWS


def test_labels_in_a_file_of_their_own(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", np.arange(ROWS))
    for source in (str(tmp_path / "x.npy"), X, {"x": X}):
        data = open_data(source, [PORT], labels=str(tmp_path / "y.npy"))
        assert data.held_out is not None
        assert all(np.array_equal(batch["x"], X[labels]) for batch, labels in data.held_out.labelled())
    np.save(tmp_path / "y.npy", np.arange(ROWS - 1))
    with pytest.raises(UsageError, match=r"y.npy: has 149 labels for 150 samples"):
        open_data(X, [PORT], labels=str(tmp_path / "y.npy"))
    np.save(tmp_path / "y.npy", np.ones(ROWS))
    with pytest.raises(UsageError, match=r"y.npy: array '': is float64 \[150\]; labels are integers"):
        open_data(X, [PORT], labels=str(tmp_path / "y.npy"))
    with pytest.raises(UsageError, match=r"no\.npy: there is no such file"):
        open_data(X, [PORT], labels="no.npy")
    with pytest.raises(UsageError, match="are for samples in files or arrays"):
        open_data(singles, [PORT], labels=str(tmp_path / "y.npy"))


def numbered(kind: str) -> Any:
    """Samples with their number as the label."""
    for start in range(0, ROWS, 30):
        x, y = X[start : start + 30], np.arange(start, start + 30)
        yield {"x": x, "class": Tensor(y)} if kind == "dicts" else (x, y)


class Numbered(Dataset):
    def __getitem__(self, index: int) -> Any:
        return Tensor(X[index]), index


@pytest.mark.parametrize(
    ("source", "label"),
    [(lambda: numbered("tuples"), "1"), (lambda: numbered("dicts"), "class"), (Numbered(), "1"),
     ({"x": X, "y": np.arange(ROWS)}, "y")],
    ids=["tuples", "dicts", "dataset", "arrays"],
)  # fmt: skip
def test_labels_from_python(source: Any, label: str) -> None:
    data = open_labelled(source, [PORT], label)
    for _ in range(2):
        pairs = list(data.labelled())
        assert sum(len(labels) for _, labels in pairs) == ROWS
        assert all(np.array_equal(batch["x"], X[labels]) for batch, labels in pairs)


@pytest.mark.parametrize(
    ("source", "label", "message"),
    [
        (lambda: numbered("tuples"), "2", "has no labels '2'; say the name of one in a dict, or its position"),
        (lambda: numbered("tuples"), "y", "has no labels 'y'"),
        (lambda: numbered("dicts"), "y", "has no labels 'y'"),
        (lambda: numbered("tuples"), "0", r"is float32 \[30, 3, 4, 4\]; labels are integers, one for each sample"),
        (lambda: iter([(X, np.arange(3))]), "1", r"is int64 \[3\]; labels are integers"),
    ],
)
def test_labels_from_python_that_are_none(source: Any, label: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(open_labelled(source, [PORT], label).labelled())


def test_a_stream_holds_nothing_out() -> None:
    with pytest.raises(UsageError, match=r"can't be held out; evaluate on others \(--test\)"):
        open_data(singles, [PORT], labels="1")


def test_folders_are_classes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for number, name in enumerate(("cat", "bird", "ant")):
        (tmp_path / name / "deep").mkdir(parents=True)
        for place in (".", "deep"):
            image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name / place / "i.png")
    options = ImageOptions(scale=1.0)
    data = open_labelled(str(tmp_path), [PORT], "folders", images=options)
    ((batch, labels),) = data.labelled()
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] and batch["x"][:, 0, 0, 0].tolist() == [2, 2, 1, 1, 0, 0]
    with pytest.raises(UsageError, match=r"labels of images are 'folders' \(each a class\), or an .npy"):
        open_labelled(str(tmp_path), [PORT], "y", images=options)
    image.new("RGB", (4, 4)).save(tmp_path / "stray.png")
    with pytest.raises(UsageError, match=r"stray.png: is in no folder that could be its class"):
        open_labelled(str(tmp_path), [PORT], "folders", images=options)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_is_that_of_a_batch(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "d.npz", x=np.zeros((400, 3, 64, 64), np.float32))  # 20 MB
    tracemalloc.start()
    data = open_data(str(tmp_path / "d.npz"), [Port("x", "float32", (None, 3, 64, 64))], batch_size=8)
    assert sum(len(batch["x"]) for batch in data.batches()) == 400
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6


# -- what is wrong ------------------------------------------------------------------------------------


def with_value(value: float) -> np.ndarray[Any, Any]:
    array = X.copy()
    array[70, 1, 2, 3] = value
    return array


def broken() -> Iterator[Any]:
    yield X[:3]
    raise RuntimeError("no\nmore")


WRONG = {
    "NaN": (with_value(np.nan), "sample 70, input 'x': has NaN; leave it out"),
    "infinite": (with_value(-np.inf), "sample 70, input 'x': has an infinite value; leave it out"),
    "NaN in a stream": (list(with_value(np.nan)), "item 70, input 'x': has NaN; leave it out"),
    "dtype": (X.astype(np.float64), "input 'x': is float64; the model takes float32"),
    "shape": (X[:, :2], "input 'x': is [64, 2, 4, 4] in a batch; the model takes [?, 3, 4, 4]"),
    "rank": ([X[0, 0, 0]], "item 0, input 'x': is [4] in a batch; the model takes [?, 3, 4, 4]"),
    "name": ([{"y": X}], "item 0: has no input 'x'; it has 'y'"),
    "no array": ([(1, 2)], "item 0: input 'x' is a int; arrays or tensors are needed"),
    "empty array": (X[:0], "has no samples"),
    "text": (b"abc", "bytes gives no samples"),
    "NaN in a generator": (lambda: iter(with_value(np.nan)), "sample 70, input 'x': has NaN; leave it out"),
    "empty list": ([], "has no samples"),
    "empty tuple": ([()], "item 0: 0 values; the model has 1 inputs"),
    "no source": (3, "int gives no samples; an iterable, or a function that makes one, is needed"),
    "function of nothing": (lambda: 3, "gave a int, which can't be iterated over"),
    "exception": (broken, "sample 3: raised RuntimeError: no; --traceback shows where"),
    "no file": ("nowhere.npz:x", "nowhere.npz: there is no such file or folder"),
    "no module": ("nowhere_at_all:x", "nowhere_at_all: can't be imported: ModuleNotFoundError"),
    "no name": ("json:nothing", "json: has no 'nothing'"),
    "uint8 that are no images": (np.zeros((9, 5, 4, 4), np.uint8), "uint8 [9, 5, 4, 4] are no images of 3 channels"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_samples(kind: str) -> None:
    source, message = WRONG[kind]
    with pytest.raises(UsageError) as caught:
        sizes(open_data(source, [PORT], samples=None))
    assert message in str(caught.value) and "\n" not in str(caught.value)


WRONG_FILES = {
    "pickled": (lambda f: np.save(f, np.array([{}, 1], object), allow_pickle=True), "holds other than plain arrays"),
    "text": (lambda f: f.write_text("hello"), "is no .npz or .npy file, nor a folder"),
    "cut short": (lambda f: (np.save(f, X), f.write_bytes(f.read_bytes()[:-9])), "it is damaged"),
    "cut archive": (lambda f: f.write_bytes(b"PK\x03\x04" + bytes(60)), "it is damaged"),
    "huge header": (lambda f: f.write_bytes(b"\x93NUMPY\x01\x00\xff\xff{"), "it is damaged"),
    "structured": (lambda f: np.save(f, np.zeros(3, [("a", "f4")])), "holds other than plain arrays"),
    "a number": (lambda f: np.save(f, np.float32(3)), "is a single number; samples are needed"),
    "no samples": (lambda f: np.save(f, X[:0]), "has no samples"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_wrong_files(tmp_path: Path, kind: str) -> None:
    write, message = WRONG_FILES[kind]
    write(tmp_path / "x.npy")  # type: ignore[no-untyped-call]
    with pytest.raises(UsageError, match=rf"^{tmp_path / 'x.npy'}: [^\n]*{message}"):
        open_data(str(tmp_path / "x.npy"), [PORT])


def test_wrong_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", a=X, b=X, y=np.arange(3), z=np.ones(ROWS))
    path = str(tmp_path / "d.npz")
    for source, labels, message in (
        (path, None, "has no array 'x'; it has 'a', 'b', 'y', 'z'; name one: "),
        (f"{path}:c", None, "has no array 'c'; it has 'a', 'b', 'y', 'z'"),
        (f"{path}:a", "y", "array 'y': has 3 labels for 150 samples"),
        (f"{path}:a", "z", "array 'z': is float64 [150]; labels are integers"),
        (f"{path}:a", "l", "has no array 'l' of labels"),
        (str(tmp_path / "empty"), None, "has no .npy, .npz or image files"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UsageError) as caught:
            open_data(source, [PORT], labels=labels)
        assert message in str(caught.value)
    with pytest.raises(UsageError, match="its arrays have different numbers of samples"):
        open_data({"a": X[:, 0, 0, :2], "b": np.arange(3)}, PAIR)


def endless(size: int) -> Iterator[Any]:
    while True:
        yield X[:size]


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_source_that_never_ends(size: int) -> None:
    """It is left as soon as there are enough samples."""
    assert sum(sizes(open_data(endless(size), [PORT], samples=100))) == 100


def test_a_source_that_never_ends_and_gives_nothing() -> None:
    with pytest.raises(UsageError, match="gave 10000 items in a row without a sample; end it where there are no more"):
        sizes(open_data(endless(0), [PORT], samples=100))


def test_a_source_without_an_end_in_sight_is_told_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recalibration_data, "MANY", 100)
    told = "100 samples, and there are more: a source that never ends takes --samples"
    for count, samples, warnings in ((99, None, []), (130, None, [told]), (130, 120, [])):
        caplog.clear()
        sizes(open_data(iter(X[:count]), [PORT], samples=samples))
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == warnings


# -- images -------------------------------------------------------------------------------------------

PIXELS = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
LAYOUTS = {
    "nchw": Port("x", "float32", ("n", 3, 8, 8)), "nhwc": Port("x", "float32", ("n", 8, 8, 3)),
    "half": Port("x", "float16", ("n", 3, 8, 8)), "bfloat16": Port("x", "bfloat16", ("n", 3, 8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stored", ["nhwc", "nchw"])
def test_pixels_become_inputs(layout: str, stored: str) -> None:
    pixels = PIXELS if stored == "nhwc" else PIXELS.transpose(0, 3, 1, 2)
    batch = next(open_data(pixels, [LAYOUTS[layout]], images=ImageOptions(mean=MEAN, std=STD)).batches())["x"]
    order = np.random.default_rng(0).permutation(len(PIXELS))
    expected = (PIXELS[order] / 255 - MEAN) / STD
    if layout != "nhwc":
        expected = expected.transpose(0, 3, 1, 2)
    assert batch.dtype.name == LAYOUTS[layout].type
    tolerance = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[LAYOUTS[layout].type]
    assert np.abs(batch.astype(np.float64) - expected).max() < tolerance


def test_unnormalised_images_are_told_and_grey_ones_known() -> None:
    grey = PIXELS[..., 0]
    data = open_data(grey, [Port("x", "float32", ("n", 1, 8, 8))])
    assert gathered(data).shape == (20, 1, 8, 8) and gathered(data).max() <= 1
    assert "images are only multiplied by 0.003922: no mean and std were given" in data.notices
    raw = open_data(PIXELS, [Port("x", "uint8", ("n", 8, 8, 3))])
    assert gathered(raw).dtype == np.uint8


def test_augmentation_crops_and_flips_and_repeats() -> None:
    port = Port("x", "float32", ("n", 8, 8, 3))
    options = ImageOptions(scale=1.0, augment_pad=2)
    data = open_data(np.stack([PIXELS[0]] * 200), [port], images=options)
    seen, again = gathered(data), gathered(data)
    assert np.array_equal(seen, again)
    padded = np.pad(PIXELS[0], ((2, 2), (2, 2), (0, 0)))
    crops = [padded[y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
    possible = {crop.tobytes() for part in crops for crop in (part, part[:, ::-1])}
    found = {image.astype(np.uint8).tobytes() for image in seen}
    assert found <= possible and len(found) > 40
    other = gathered(open_data(np.stack([PIXELS[0]] * 200), [port], images=options, seed=1))
    assert not np.array_equal(seen, other)


def test_held_out_images_are_not_augmented(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=PIXELS, y=np.arange(len(PIXELS)))
    port = Port("x", "float32", ("n", 8, 8, 3))
    data = open_data(str(tmp_path / "d.npz"), [port], labels="y", images=ImageOptions(scale=1.0, augment_pad=4))
    assert data.held_out is not None
    for batch, labels in data.held_out.labelled():
        assert np.array_equal(batch["x"], PIXELS[labels])


def test_folder_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    (tmp_path / "b").mkdir()
    for number, pixels in enumerate(PIXELS):
        folder = tmp_path / "b" if number % 2 else tmp_path
        image.fromarray(pixels).save(folder / f"{number:02}.PNG")
    data = open_data(str(tmp_path), [LAYOUTS["nhwc"]], images=ImageOptions(scale=1.0))
    assert np.array_equal(in_order(gathered(data)), in_order(PIXELS.astype(np.float32)))
    # Resized and cropped as Pillow does it: the shorter side first.
    image.fromarray(np.tile(PIXELS[0], (1, 3, 1))).save(tmp_path / "b" / "wide.png")
    with pytest.raises(UsageError, match=r"\.(png|PNG): is 8×\d+, another is 8×\d+; give --resize"):
        gathered(open_data(str(tmp_path), [Port("x", "float32", ("n", 3, "h", "w"))]))
    options = ImageOptions(resize=12, crop=(8, 8), scale=1.0)
    assert gathered(open_data(str(tmp_path), [LAYOUTS["nhwc"]], images=options)).shape == (21, 8, 8, 3)
    wide = open_data(str(tmp_path), [LAYOUTS["nhwc"]], images=ImageOptions(resize=(8, 8), scale=1.0))
    expected = np.asarray(image.open(tmp_path / "b" / "wide.png").resize((8, 8), image.BILINEAR), np.float32)
    assert any(np.array_equal(one, expected) for one in gathered(wide))
    with pytest.raises(UsageError, match="smaller than the crop"):
        gathered(open_data(str(tmp_path), [LAYOUTS["nhwc"]], images=ImageOptions(crop=9)))


def test_images_that_can_not_be_decoded(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for content in (b"nothing", whole[: len(whole) // 2], b""):
        (tmp_path / "bad.jpg").write_bytes(content)
        with pytest.raises(UsageError, match=rf"^{tmp_path / 'bad.jpg'}: can't be decoded as an image"):
            gathered(open_data(str(tmp_path), [LAYOUTS["nchw"]]))
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(UsageError, match="both arrays"):
        open_data(str(tmp_path), [LAYOUTS["nchw"]])


def test_images_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(UsageError, match=r"images need Pillow; pip install 'bnfold\[images\]'"):
        open_data(str(tmp_path), [LAYOUTS["nchw"]])
