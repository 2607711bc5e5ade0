"""Keras's .h5: files that Keras wrote, round trips, h5py as the second oracle, and what HDF5 can do that no file of
weights should."""

import lzma
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refnet.errors import WeightsError
from refnet.weights.files import read_tensors, write_tensors
from refnet.weights.hdf5_file import write
from tests.weights.damage import MUTATIONS, assert_refused, assert_same, mutated, read_or_refuse

GOLDEN = Path(__file__).parents[1] / "golden" / "matterport"

KERNEL = np.arange(143, dtype=np.float32).reshape(11, 13)
TENSORS = {
    "conv1/kernel": KERNEL,
    "conv1/bias": np.arange(5, dtype=np.float32),
    "rpn_conv_shared/kernel": KERNEL + 1,
    "rpn_class_raw/kernel": KERNEL + 2,
}
LAYERS = {
    "conv1": ["conv1/kernel", "conv1/bias"],
    "rpn_model": ["rpn_conv_shared/kernel", "rpn_class_raw/kernel"],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.h5"


@pytest.mark.parametrize("name", ["layout_r50", "layout_r50_keras21"])
def test_golden_files_of_keras(path: Path, name: str) -> None:
    """All 384 weights of a Matterport network. Element j of weight i is ``(7 j + i) % 13 - 6``."""
    with lzma.open(GOLDEN / f"{name}.h5.xz") as packed, path.open("wb") as file:
        while chunk := packed.read(2**22):
            file.write(chunk)
    tensors = read_tensors(path)
    assert len(tensors) == 384
    assert list(tensors)[:6] == [
        "conv1/kernel", "conv1/bias",
        "bn_conv1/gamma", "bn_conv1/beta", "bn_conv1/moving_mean", "bn_conv1/moving_variance",
    ]  # fmt: skip
    assert [key for key in tensors if key.startswith("rpn")] == [
        f"{layer}/{weight}"
        for layer in ("rpn_conv_shared", "rpn_class_raw", "rpn_bbox_pred")
        for weight in ("kernel", "bias")
    ]
    shapes = {"conv1/kernel": (7, 7, 3, 64), "mrcnn_mask_deconv/kernel": (2, 2, 256, 256), "mrcnn_mask/bias": (4,)}
    assert {key: tensors[key].shape for key in shapes} == shapes
    longest = max(array.size for array in tensors.values())
    pattern = ((np.arange(longest + 13) * 7) % 13 - 6).astype(np.float32)
    for i, (key, array) in enumerate(tensors.items()):
        start = 2 * i % 13  # 7 · 2 is 1 modulo 13
        assert array.dtype == np.float32, key
        assert np.array_equal(array.ravel(), pattern[start : start + array.size]), key
    path.unlink()


def test_what_was_written_is_read_bit_for_bit(path: Path) -> None:
    plain = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    tensors = {
        "a/kernel": plain.T,
        "a/bias": plain[::2, ::-1, 1],
        "b/kernel": plain.astype(">f4"),
        "b/bias": np.array(2.5),
        "c/gamma": np.zeros((0, 3), np.float32),
        "c/beta": np.array([np.nan, -0.0, np.inf], np.float16),
        "d/kernel": np.arange(5, dtype=np.int64),
        "d/bias": np.arange(3, dtype=np.uint8),
        "e/kernel": np.arange(-3, 3, dtype=">i2"),
    }
    write_tensors(path, tensors)
    assert_same(read_tensors(path), tensors)


@pytest.mark.parametrize("tensors", [{}, {"a/kernel": np.array(1.0)}, {"a/kernel": np.zeros(0)}])
def test_small_files(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """What the structures take in sum must stay below the file's size in these, too."""
    write(path, tensors)
    assert_same(read_tensors(path), tensors)


def test_several_hundred_layers(path: Path) -> None:
    write(path, {f"layer{i}/bias": np.full(1, i, np.float32) for i in range(300)})
    found = read_tensors(path)
    assert list(found) == [f"layer{i}/bias" for i in range(300)]
    assert all(found[f"layer{i}/bias"][0] == i for i in range(300))


def test_what_keras_looks_for_is_there(path: Path) -> None:
    """By-name loading of Keras 2 reads these attributes and these paths, and hands out weights by position."""
    write(path, {f"bn/{weight}": KERNEL for weight in ("moving_variance", "beta", "moving_mean", "gamma")} | TENSORS)
    with h5py.File(path) as file:
        assert file.attrs["layer_names"].tolist() == [b"bn", b"conv1", b"rpn_model"]
        assert (file.attrs["backend"], file.attrs["keras_version"]) == ("tensorflow", "2.1.6")
        types = {name: file.attrs.get_id(name).get_type() for name in file.attrs}
        # as in the golden file of Keras 2.1: text that h5py 2 reads as bytes, and lists of one length padded with zeros
        assert {name: (kind.is_variable_str(), kind.get_cset(), kind.get_strpad()) for name, kind in types.items()} == {
            "backend": (True, h5py.h5t.CSET_ASCII, h5py.h5t.STR_NULLTERM),
            "keras_version": (True, h5py.h5t.CSET_ASCII, h5py.h5t.STR_NULLTERM),
            "layer_names": (False, h5py.h5t.CSET_ASCII, h5py.h5t.STR_NULLPAD),
        }
        assert file["bn"].attrs["weight_names"].tolist() == [
            b"bn/gamma:0", b"bn/beta:0", b"bn/moving_mean:0", b"bn/moving_variance:0",
        ]  # fmt: skip
        assert file["rpn_model"].attrs["weight_names"].tolist() == [
            b"rpn_conv_shared/kernel:0",
            b"rpn_class_raw/kernel:0",
        ]
        assert np.array_equal(file["/rpn_model/rpn_conv_shared/kernel:0"][()], KERNEL + 1)


def test_equal_weights_make_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a", TENSORS)
    write(tmp_path / "b", {name: np.asfortranarray(array) for name, array in TENSORS.items()})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_of_a_whole_model(path: Path) -> None:
    keras(path, within="model_weights")
    assert_same(read_tensors(path), TENSORS)


def test_texts_of_variable_length(path: Path) -> None:
    keras(path, variable=True)
    assert_same(read_tensors(path), TENSORS)


def test_names_that_tensorflow_made_unique(path: Path) -> None:
    keras(path, {"conv1": {"conv1_1/kernel:0": KERNEL}, "model": {"scope/inner/kernel:0": KERNEL}, "c": {"w": KERNEL}})
    assert list(read_tensors(path)) == ["conv1/kernel", "inner/kernel", "c/w"]


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"kernel": KERNEL}, "LAYER/WEIGHT"),
        ({"a/weight": KERNEL}, "LAYER/WEIGHT"),
        ({"model/a/kernel": KERNEL}, "LAYER/WEIGHT"),
        ({"../kernel": KERNEL}, "printable name"),
        ({"a/kernel": np.zeros(2, bool)}, "plain numbers"),
        ({"a/kernel": np.array(["a"])}, "plain numbers"),
        ({f"{i:01000d}/kernel": KERNEL for i in range(65)}, "at most 64000 bytes"),
    ],
)
def test_what_keras_could_not_read_is_not_written(path: Path, tensors: dict[str, Any], match: str) -> None:
    with pytest.raises(WeightsError, match=match):
        write_tensors(path, tensors)
    assert list(path.parent.iterdir()) == []


def test_without_h5py_the_error_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, TENSORS)
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert_same(read_tensors(path), TENSORS)  # needs none
    with pytest.raises(WeightsError, match=r"pip install 'refnet\[weights\]'"):
        write(path, TENSORS)


def keras(
    path: Path, layers: dict[str, dict[str, np.ndarray]] | None = None, *, within: str = "", variable: bool = False
) -> None:
    """A file as Keras writes it, by h5py."""

    def texts(names: list[str]) -> Any:
        return np.array(names, h5py.string_dtype()) if variable else np.array([name.encode() for name in names])

    layers = layers or {group: {f"{name}:0": TENSORS[name] for name in names} for group, names in LAYERS.items()}
    with h5py.File(path, "w") as file:
        root = file.create_group(within) if within else file
        root.attrs["layer_names"] = texts(list(layers))
        for layer, weights in layers.items():
            group = root.create_group(layer)
            group.attrs["weight_names"] = texts(list(weights))
            for name, array in weights.items():
                group[name] = array


def made(change: Callable[[h5py.Group], None], **options: Any) -> Callable[[Path], None]:
    """A file whose weight ``a/kernel`` is what `change` puts into the group ``a``."""

    def make(path: Path) -> None:
        with h5py.File(path, "w", **options) as file:
            file.attrs["layer_names"] = np.array([b"a"])
            group = file.create_group("a")
            group.attrs["weight_names"] = np.array([b"kernel"])
            change(group)

    return make


def virtual(group: h5py.Group) -> None:
    layout = h5py.VirtualLayout((100,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "data", (100,))
    group.create_virtual_dataset("kernel", layout)


def compact(group: h5py.Group) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(group.id, b"kernel", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((2,)), plist)


def link(target: Any) -> Callable[[Path], None]:
    def change(group: h5py.Group) -> None:
        group["kernel"] = target

    return made(change)


def dataset(*arguments: Any, **options: Any) -> Callable[[Path], None]:
    return made(lambda group: group.create_dataset("kernel", *arguments, **options))


def typed(dtype: Any) -> Callable[[Path], None]:
    return dataset((2,), dtype)


def attributes(**values: Any) -> Callable[[Path], None]:
    """A good file with other attributes, at the root, or at the layer's group if they are called so."""

    def make(path: Path) -> None:
        dataset(data=KERNEL)(path)
        with h5py.File(path, "r+") as file:
            for name, value in values.items():
                owner = file["a"] if name == "weight_names" else file
                del owner.attrs[name]
                if value is not None:
                    owner.attrs[name] = value

    return make


MADE = {
    "a link to another file": (link(h5py.ExternalLink("/etc/passwd", "/data")), "external links or a newer layout"),
    "a soft link": (link(h5py.SoftLink("/elsewhere")), "a link to a path"),
    "a soft link to itself": (link(h5py.SoftLink("/a/kernel")), "a link to a path"),
    "a soft link to the group above": (link(h5py.SoftLink("/a")), "a link to a path"),
    "data in another file": (dataset((100,), "u1", external=[("/etc/passwd", 0, 100)]), "those of other files"),
    "a virtual dataset": (made(virtual), "data in one piece"),
    "compressed data": (dataset(data=np.zeros((1000, 1000)), compression="gzip"), "compressed data"),
    "a compressed dataset of a petabyte": (dataset((2**24, 2**24), "f4", compression="gzip"), "compressed data"),
    "chunks": (dataset((2**40,), "f4", chunks=(64,)), "data in one piece"),
    "a dataset of a petabyte without data": (
        dataset((2**24, 2**24), "f4"),
        "expected a structure within|share no bytes",
    ),
    "data in the header": (made(compact), "data in one piece"),
    "a layout of tomorrow": (made(lambda g: g.create_dataset("kernel", data=KERNEL), libver="latest"), "superblock 0"),
    "a bool, which HDF5 knows as an enumeration": (typed(bool), "got type 8"),
    "complex numbers": (typed(complex), "got type 6"),
    "references": (typed(h5py.ref_dtype), "got type 7"),
    "texts of variable length": (typed(h5py.string_dtype()), "expected numbers, got texts"),
    "lists of variable length": (typed(h5py.vlen_dtype(np.float32)), "got type 9"),
    "texts": (typed("S8"), "expected numbers, got texts"),
    "opaque bytes": (typed("V8"), "got type 5"),
    "a group for a weight": (made(lambda group: group.create_group("kernel")), "dataset with a shape"),
    "a weight that isn't there": (made(lambda group: None), "there is no 'kernel'"),
    "no layer_names": (attributes(layer_names=None), "attribute layer_names"),
    "no weight_names": (attributes(weight_names=None), "attribute weight_names"),
    "layer_names that are numbers": (attributes(layer_names=np.arange(3)), "expected texts"),
    "layer_names that climb": (attributes(layer_names=np.array([b"../a"])), "printable name"),
    "layer_names that aren't UTF-8": (attributes(layer_names=np.array([b"\xff\xfe"])), "UTF-8"),
    "a layer twice": (attributes(layer_names=np.array([b"a", b"a"])), "twice"),
    "a weight twice": (attributes(weight_names=np.array([b"kernel", b"kernel"])), "twice"),
    "two names for one weight": (attributes(weight_names=np.array([b"kernel", b"kernel:0"])), "'a/kernel' twice"),
    "a layer that isn't there": (attributes(layer_names=np.array([b"a", b"b"])), "there is no 'b'"),
    "a layer that is a weight": (attributes(layer_names=np.array([b"a/kernel"])), "attribute weight_names"),
}


@pytest.mark.parametrize("what", MADE)
def test_hostile_and_well_formed(path: Path, what: str) -> None:
    make, match = MADE[what]
    make(path)
    assert_refused(path, match)


class Bytes:
    """A good file, and where its structures are."""

    def __init__(self, path: Path, *, variable: bool = False) -> None:
        keras(path, variable=variable)
        self.data = bytearray(path.read_bytes())
        with h5py.File(path) as file:
            self.header = h5py.h5o.get_info(file["conv1/conv1/kernel:0"].id).addr
            self.place = file["conv1/conv1/kernel:0"].id.get_offset()
            self.root = h5py.h5o.get_info(file.id).addr

    def put(self, at: int, form: str, *values: int) -> None:
        struct.pack_into("<" + form, self.data, at, *values)

    def find(self, content: bytes, start: int = 0) -> int:
        at = self.data.find(content, start)
        assert at >= 0
        return at

    @property
    def shape(self) -> int:
        """Where the kernel's extents are."""
        return self.find(struct.pack("<2Q", 11, 13), self.header)

    @property
    def layout(self) -> int:
        """Where the kernel's address and number of bytes are."""
        return self.find(struct.pack("<2Q", self.place, 143 * 4), self.header)

    @property
    def tree(self) -> int:
        """The root group's tree."""
        return self.find(b"TREE")

    @property
    def entries(self) -> int:
        """The entries of the root group's node."""
        return self.find(b"SNOD") + 8


def other_heap_text(file: Bytes) -> None:
    """The name of the first layer is as long as the file."""
    at = file.find(struct.pack("<I", 5) + struct.pack("<Q", file.find(b"GCOL")))
    file.put(at, "I", len(file.data))


def text_twice(file: Bytes) -> None:
    """The second text of a heap has the number of the first."""
    first = file.find(b"GCOL") + 16
    number, length = file.data[first], struct.unpack_from("<Q", file.data, first + 8)[0]
    file.put(first + 16 + length + -length % 8, "H", number)


BROKEN: dict[str, tuple[Callable[[Bytes], None], str]] = {
    "an extent of 2^63": (lambda f: f.put(f.shape, "Q", 2**63), "fits in 2"),
    "extents whose product wraps round to the truth": (lambda f: f.put(f.shape, "2Q", 143 + 2**62, 4), "fits in 2"),
    "extents of a terabyte": (lambda f: f.put(f.shape, "2Q", 2**20, 2**18), "bytes for its shape"),
    "a terabyte of data": (
        lambda f: (f.put(f.shape, "2Q", 2**20, 2**18), f.put(f.layout + 8, "Q", 2**40)),
        "share no bytes",
    ),
    "more data than the shape says": (lambda f: f.put(f.layout + 8, "Q", 600), "bytes for its shape"),
    "data behind the end": (lambda f: f.put(f.layout, "Q", 2**40), "structure within"),
    "data at an address that wraps round": (lambda f: f.put(f.layout, "Q", 2**64 - 300), "structure within"),
    "200 axes": (lambda f: f.put(f.shape - 7, "B", 200), "within its parts"),
    "a kernel without data": (lambda f: f.put(f.layout, "Q", 2**64 - 1), "structure within"),
    "a group that is its own parent": (lambda f: f.put(f.entries + 8, "Q", f.root), "attribute weight_names"),
    "a tree that is its own child": (lambda f: f.put(f.tree + 32, "Q", f.tree), "share no bytes"),
    "a tree of 65,535 children": (lambda f: f.put(f.tree + 6, "H", 65_535), "structure within|share no bytes"),
    "a node of 65,535 members": (lambda f: f.put(f.entries - 2, "H", 65_535), "structure within|share no bytes"),
    "a tree of the wrong kind": (lambda f: f.put(f.tree + 4, "B", 1), "tree of groups"),
    "a name behind the heap": (lambda f: f.put(f.entries, "Q", 2**40), "structure within"),
    "a name that isn't UTF-8": (lambda f: f.put(f.find(b"rpn_model", f.find(b"HEAP")), "B", 0xFF), "UTF-8"),
    "a name twice in a group": (
        lambda f: f.put(f.entries + 40, "Q", *struct.unpack_from("<Q", f.data, f.entries)),
        "tw",
    ),
    "a header that is no header": (lambda f: f.put(f.header, "B", 9), "object header of version 1"),
    "a header of 65,535 messages": (lambda f: f.put(f.header + 2, "H", 65_535), "number of messages"),
    "a header of 4 GiB": (lambda f: f.put(f.header + 8, "I", 2**32 - 8), "share no bytes|structure within"),
    "a header that continues in itself": (
        lambda f: f.put(f.header + 16, "2HBBH2Q", 0x10, 16, 0, 0, 0, f.header + 16, 24),
        "share no bytes",
    ),
    "a message longer than its header": (lambda f: f.put(f.header + 18, "H", 65_528), "within its parts"),
    "a shared message": (lambda f: f.put(f.header + 20, "B", 2), "a shared one"),
    "a superblock of tomorrow": (lambda f: f.put(8, "B", 3), "superblock 0"),
    "offsets of 255 bytes": (lambda f: f.put(13, "B", 255), "superblock 0"),
    "a root behind the end": (lambda f: f.put(64, "Q", 2**63), "structure within"),
    "bytes before the file": (lambda f: f.put(24, "Q", 512), "truncated"),
    "a floating-point number of another kind": (
        lambda f: f.put(f.find(struct.pack("<2H4BI", 0, 32, 23, 8, 0, 23, 127), f.header), "H", 1),
        "IEEE",
    ),
    "a truncated file": (lambda f: f.data.__delitem__(slice(-100, None)), "truncated"),
    "half a superblock": (lambda f: f.data.__delitem__(slice(40, None)), "share no bytes|structure within"),
    "only the signature": (lambda f: f.data.__delitem__(slice(8, None)), "share no bytes|structure within"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_hostile_and_broken(path: Path, what: str) -> None:
    file = Bytes(path)
    damage, match = BROKEN[what]
    damage(file)
    path.write_bytes(file.data)
    assert_refused(path, match)


HEAPS: dict[str, tuple[Callable[[Bytes], None], str]] = {
    "a text longer than its heap": (other_heap_text, "text of at most"),
    "a heap of 2^63 bytes": (lambda f: f.put(f.find(b"GCOL") + 8, "Q", 2**63), "share no bytes"),
    "a heap of no bytes": (lambda f: f.put(f.find(b"GCOL") + 8, "Q", 0), "16 bytes or more"),
    "a text of 2^63 bytes": (lambda f: f.put(f.find(b"GCOL") + 24, "Q", 2**63 - 8), "within its parts"),
    "a text twice in its heap": (text_twice, "twice"),
}


@pytest.mark.parametrize("what", HEAPS)
def test_hostile_heaps_of_texts(path: Path, what: str) -> None:
    file = Bytes(path, variable=True)
    damage, match = HEAPS[what]
    damage(file)
    path.write_bytes(file.data)
    assert_refused(path, match)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = tmp_path_factory.mktemp("original") / "weights.h5"
    files = []
    for variable in (False, True):
        keras(path, {"a": {"a/kernel:0": KERNEL[0], "a/bias:0": KERNEL[0, :2]}}, variable=variable)
        files.append(path.read_bytes())
    return files


@given(st.data())
@settings(max_examples=MUTATIONS, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutations_are_read_or_refused(path: Path, originals: list[bytes], data: st.DataObject) -> None:
    original = data.draw(st.sampled_from(originals))
    read_or_refuse(path, data.draw(mutated(original)))
