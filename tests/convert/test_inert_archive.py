"""Files that claim more than they hold take no more memory and time than their size allows."""

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import zipfile

import pytest
import torch

from ezclip.convert.formats import read_checkpoint
from ezclip.convert.inert_archive import read_archive
from ezclip.errors import ModelError
from tests.helpers import ROOT


# Reads each file in a process of its own, and prints the error, the growth of its address space and the seconds.
MEASURE = """
import json, os, resource, signal, sys, time
from ezclip.convert.formats import read_checkpoint
from ezclip.errors import ModelError

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

for path in sys.argv[1:]:
    if os.fork() == 0:
        signal.alarm(20)
        size, start = kilobytes("VmSize"), time.perf_counter()
        resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + 2**33, -1))
        try:
            read_checkpoint(path)
            error = "it was read"
        except ModelError as caught:
            error = str(caught)
        except BaseException as caught:
            error = repr(caught)
        seconds = time.perf_counter() - start
        print(json.dumps([path, error, (kilobytes("VmPeak") - size) * 1024, seconds]), flush=True)
        os._exit(0)
    os.wait()
"""
FIRST_MEGABYTES = 150  # any file may take so much: MIN_PICKLE_MEMORY, and the buffers of PyTorch
SECONDS = 10


def zip_file(content: bytes, parts=(), name="x/data.pkl", compression=zipfile.ZIP_STORED, change=lambda archive: None):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content, compression)
        for part, value in parts:
            archive.writestr(part, value)
        change(archive)
    return buffer.getvalue()


def legacy_file(content: bytes, keys=(), storages=b"", little_endian=True):
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": little_endian})
    return b"".join([*(pickle.dumps(item, 2) for item in head), content, pickle.dumps(list(keys), 2), storages])


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def storage(kind="Float", key="0", numel=1, last=b"") -> bytes:
    kind = f"ctorch\n{kind}Storage\n".encode()
    return b"(" + text("storage") + kind + text(key) + text("cpu") + number(numel) + last + b"tQ"


def tensor(of: bytes, size=1) -> bytes:
    shape = number(0) + number(size) + b"\x85" + number(1) + b"\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + of + shape + b"\x89NtR"


def state_dict(**tensors: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in tensors.items()) + b"u."


def overlap(archive: zipfile.ZipFile):
    archive.filelist[-1].header_offset = archive.filelist[0].header_offset


def repeat(archive: zipfile.ZipFile):
    archive.filelist.append(archive.filelist[-1])


def tar_file() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


LARGE_NUMBER = number(2 * 10**9)
LARGE_DICT = b"}(" + b"".join(number(i) + b"N" for i in range(2**15)) + b"u"
MODULE = b"c__torch__\nTree\n)\x81"
PARENT_OF_TWO = b"q\x00" + MODULE + b"}(" + text("a") + b"h\x00" + text("b") + b"h\x00ub"  # the one before
NO_STATE_DICT, DAMAGED = "holds no state dict", "must be a complete file"
ONE = ("x/data/0", bytes(4))
FILES: dict[str, tuple[bytes, str]] = {
    **{
        f"call of {name}": (zip_file(f"c__builtin__\n{name}\n".encode() + LARGE_NUMBER + b"\x85R."), NO_STATE_DICT)
        for name in ("bytearray", "bytes", "list", "range")
    },
    **{
        f"length of {name}, {file.__name__}": (file(b"\x80\x05" + code + length + b"N."), DAMAGED)
        for name, code, length in [
            ("BYTEARRAY8", b"\x96", struct.pack("<Q", 2**32)),
            ("BINBYTES8", b"\x8e", struct.pack("<Q", 2**32)),
            ("BINUNICODE8", b"\x8d", struct.pack("<Q", 2**32)),
            ("BINBYTES", b"B", struct.pack("<I", 2**32 - 1)),
            ("LONG4", b"\x8b", struct.pack("<i", 2**31 - 1)),
        ]
        for file in (zip_file, legacy_file)
    },
    "length of FRAME": (zip_file(b"\x80\x04\x95" + struct.pack("<Q", 2**32) + b"N."), NO_STATE_DICT),
    "memo": (zip_file(b"\x80\x02]r" + struct.pack("<I", 2**27) + b"."), NO_STATE_DICT),
    "memo that is not set": (zip_file(b"\x80\x02h\x07."), DAMAGED),
    "empty stack": (zip_file(b"\x80\x02R."), DAMAGED),
    "PERSID": (zip_file(b"Pstorage\n."), "operation PERSID"),
    **{
        f"id {i}": (zip_file(b"\x80\x02" + pid + b"Q."), "an object outside of it")
        for i, pid in enumerate([number(1), b")", b"(" + text("storage") + b"NNNNt", b"]", b"(NNNNNt"])
    },
    "negative storage": (zip_file(state_dict(a=tensor(storage(numel=-1))), [ONE]), "must have -4 bytes, got 4"),
    "name of any type": (zip_file(b"\x80\x04]]\x93."), DAMAGED),
    "call of a list": (zip_file(b"\x80\x02])R."), DAMAGED),
    "DICT": (zip_file(b"(d."), "operation DICT"),
    "EXT1": (zip_file(b"\x80\x02\x82\x01."), "operation EXT1"),
    "INST": (zip_file(b"(iposix\nsystem\n."), "operation INST"),
    "dtypes": (
        zip_file(state_dict(a=tensor(storage("Float")), b=tensor(storage("Int"))), [ONE]),
        "has two types or sizes",
    ),
    "storage of fewer bytes": (zip_file(state_dict(a=tensor(storage(numel=2))), [ONE]), "must have 8 bytes, got 4"),
    "storage that is not there": (zip_file(state_dict(a=tensor(storage()))), DAMAGED),
    "view beyond the storage": (zip_file(state_dict(a=tensor(storage(), size=10**9)), [ONE]), DAMAGED),
    "legacy storage of no bytes": (legacy_file(state_dict(a=tensor(storage(numel=10**9)))), "larger than the whole"),
    "legacy storage that is not there": (legacy_file(state_dict(a=tensor(storage()))), "bytes of exactly the tensors"),
    "legacy storage twice": (legacy_file(state_dict(a=tensor(storage())), ["0", "0"]), "bytes of exactly the tensors"),
    "legacy storage of fewer bytes": (
        legacy_file(state_dict(a=tensor(storage())), ["0"], struct.pack("<q", 1)),
        "as many bytes as its pickle says",
    ),
    "legacy storage of another size": (
        legacy_file(state_dict(a=tensor(storage())), ["0"], struct.pack("<q", 2) + bytes(8)),
        "as many bytes as its pickle says",
    ),
    "legacy storage with a view": (legacy_file(state_dict(a=tensor(storage(last=b")")))), "an object outside of it"),
    "legacy big-endian": (legacy_file(b"N.", little_endian=False), "little-endian"),
    "big-endian": (zip_file(b"N.", [("x/byteorder", b"big")]), "little-endian"),
    "tar": (tar_file(), DAMAGED),
    "plain pickle": (pickle.dumps({"a": 1}), DAMAGED),
    "overlap": (zip_file(b"N." + bytes(100), [ONE], change=overlap), "overlaps another part"),
    "two of one name": (zip_file(b"N.", [ONE], change=repeat), "has two parts"),
    "bomb in code": (zip_file(bytes(10**7), name="x/code/data.pkl", compression=zipfile.ZIP_DEFLATED), DAMAGED),
    "key that is deep": (zip_file(b"})" + b"\x85" * 200_000 + b"Ns."), NO_STATE_DICT),
    "key that is shared": (zip_file(b"})" + b"q\x00h\x00\x86" * 64 + b"Ns."), NO_STATE_DICT),
    "list that is deep": (zip_file(b"](" * 50_000 + b"e" * 50_000 + b"."), NO_STATE_DICT),
    "containers": (zip_file(b"}" * 2**24 + b"."), "more operations"),
    "sets": (zip_file(b"\x80\x04" + b"\x8f" * 2**23 + b"."), "more operations"),
    "classes": (zip_file(b"".join(b"cx\n%x\n" % i for i in range(2**17)) + b"."), NO_STATE_DICT),
    "state that is shared": (zip_file(LARGE_DICT + b"q\x00" + MODULE + b"h\x00b" * 60_000 + b"."), "more operations"),
    "modules that are shared": (
        zip_file(MODULE + b"".join([PARENT_OF_TWO] * 64) + b".", [("x/constants.pkl", b").")]),
        "hold each other",
    ),
    "module in itself": (
        zip_file(MODULE + b"q\x00}(" + text("a") + b"h\x00ub.", [("x/constants.pkl", b").")]),
        "hold each other",
    ),
    "no module": (zip_file(b"].", [("x/constants.pkl", b").")]), DAMAGED),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, tuple]:
    """Return the error, the bytes of memory and the seconds for each of `FILES`."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    folder, paths = tmp_path_factory.mktemp("files"), {}
    for i, (name, (content, _)) in enumerate(FILES.items()):
        paths[name] = folder / f"{i}.pt"
        paths[name].write_bytes(content)
    command = [sys.executable, "-c", MEASURE, *map(str, paths.values())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    lines = {path: rest for path, *rest in map(json.loads, result.stdout.splitlines())}
    return {name: lines.get(str(path)) for name, path in paths.items()}


@pytest.mark.parametrize("name", FILES)
def test_hostile_file(measured, name):
    assert measured[name] is not None, "it took over 20 seconds, or the process died"
    content, message = FILES[name]
    error, num_bytes, seconds = measured[name]
    assert message in error
    assert num_bytes < 4 * len(content) + FIRST_MEGABYTES * 10**6 and seconds < SECONDS


WEIGHTS = {
    "visual.conv1.weight": torch.arange(8.0).view(2, 4),
    "token_embedding.weight": torch.arange(6).view(2, 3).half(),
    "visual.proj": torch.arange(6).view(2, 3).bfloat16().T,
    "logit_scale": torch.tensor(3.0),
}


class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.visual, self.token_embedding = torch.nn.Module(), torch.nn.Module()
        self.visual.conv1 = torch.nn.Module()
        self.visual.conv1.weight = torch.nn.Parameter(WEIGHTS["visual.conv1.weight"])
        self.token_embedding.weight = torch.nn.Parameter(WEIGHTS["token_embedding.weight"])
        self.visual.proj = torch.nn.Parameter(WEIGHTS["visual.proj"])
        self.logit_scale = torch.nn.Parameter(WEIGHTS["logit_scale"])

    def forward(self, x):
        return x


def save_zip(path):
    torch.save(WEIGHTS, path)


def save_legacy(path):
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)


def save_torchscript(path):
    torch.jit.trace(Named(), torch.zeros(1)).save(path)


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_torchscript])
def test_formats(tmp_path, save):
    save(tmp_path / "model.pt")
    tensors = read_archive(tmp_path / "model.pt")
    assert set(tensors) == set(WEIGHTS)
    for key, value in WEIGHTS.items():
        torch.testing.assert_close(tensors[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_same_as_torch_load(tmp_path, is_zip, protocol):
    path, flat = tmp_path / "model.pt", torch.arange(40.0)
    with_attribute = torch.ones(2)
    with_attribute.note = "x"
    content = {
        "views": [flat[3:], flat.view(5, 8).T, flat[0]],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "attribute": with_attribute,
        "empty": torch.empty(0, 3),
        **{str(dtype): torch.ones(3, dtype=dtype) for dtype in (torch.float64, torch.int64, torch.uint8, torch.bool)},
        "other": (1, -(2**40), 0.5, None, True, "é", b"x", [{}], {3: "x"}),
    }
    torch.save(content, path, _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)
    expected, actual = torch.load(path, weights_only=False), read_archive(path)
    assert set(actual) == set(expected)
    torch.testing.assert_close(actual.pop("other")[:5], expected["other"][:5], rtol=0, atol=0)
    for key, value in actual.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)


def test_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    save_zip(tmp_path / "model.pt")
    torch.serialization.set_crc32_options(True)
    assert set(read_archive(tmp_path / "model.pt")) == set(WEIGHTS)


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_torchscript])
def test_flipped_bytes(tmp_path, save):
    path, rng = tmp_path / "model.pt", random.Random(0)
    save(path)
    content, num_read = path.read_bytes(), 0
    for position in rng.sample(range(len(content)), min(len(content), 1000)):
        damaged = bytearray(content)
        damaged[position] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            weights = read_checkpoint(path).state_dict
        except ModelError:
            continue
        assert len(weights) == len(WEIGHTS) and all(value.isfinite().all() for value in weights.values())
        num_read += 1
    assert num_read  # bytes of padding, or of numbers
