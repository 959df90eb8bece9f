"""Read the tensors of PyTorch's zip files, even beside objects of any class, without running code in them.

`torch.load(weights_only=True)` refuses two kinds of published checkpoints: OpenAI's CLIP, which is TorchScript, and
those that hold the training's configuration as an object (ViFi-CLIP's yacs node). `torch.jit.load` and ordinary
unpickling read them, but run their code: PyTorch advises to treat a TorchScript file as a program. Both kinds are a
zip with a pickle and the bytes of the tensors. The unpickler below reads it: it knows tensors and dictionaries, and
makes an inert object of everything else. It refuses a pickle that calls anything but constructors of data (a system
function, another package's class), although it would not run the call: no checkpoint needs one. A file that unpacks to
more bytes than it has is refused too.
"""

import pickle
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch


DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
# Calls in pickles of data: containers, dates, paths and numbers of the standard library, arrays of NumPy and PyTorch
HARMLESS_CALLS = re.compile(
    r"builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice|str|tuple)"
    r"|(collections|datetime|decimal|fractions|pathlib(\._local)?|uuid)\.\w+"
    r"|_codecs\.encode|copyreg\._reconstructor"
    r"|argparse\.Namespace|types\.SimpleNamespace"
    r"|numpy(\._?core\.\w+)?\.(_reconstruct|scalar|dtype|ndarray|_frombuffer)"
    r"|torch\._utils\._rebuild_\w+|torch\.jit\._pickle\.\w+|torch\.(device|dtype|Size)"
    r"|torch\.serialization\._get_layout|torch\.storage\.\w+"
)
# The pickle of a checkpoint has about a hundred bytes a tensor. In memory it can take sixty times its size.
MAX_PICKLE_BYTES = 2**26


class ArchiveRefused(pickle.UnpicklingError):
    """A file calls something other than data, or would take more memory than a checkpoint of its size."""


def check_archive(path: str | Path) -> bool:
    """
    Raise if a part of a PyTorch zip file takes more memory than the file has bytes. No part is read.

    A file of another format is not checked. PyTorch compresses only the program of TorchScript (`code/`), which is
    never read.

    Returns:
        `bool`: whether it is TorchScript, which `torch.load` up to PyTorch 2.5 runs even with `weights_only=True`.

    Raises:
        [`ArchiveRefused`]: if a part is compressed or too large.
        `pickle.UnpicklingError`: if the file is a damaged zip file.
    """
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if "/code/" not in f"/{entry.filename}"]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise pickle.UnpicklingError(f"{path} is a damaged zip file: {error!r}") from error
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ArchiveRefused(f"its `{entry.filename}` is compressed, which PyTorch never does.")
        if entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE_BYTES:
            raise ArchiveRefused(
                f"its `{entry.filename}` must have at most {MAX_PICKLE_BYTES:,} bytes, got {entry.file_size:,}."
            )
    if sum(entry.file_size for entry in entries) > Path(path).stat().st_size:
        raise ArchiveRefused("its parts claim to be larger than the whole.")
    return any(entry.filename.rpartition("/")[2] == "constants.pkl" for entry in entries)


def read_archive(path: str | Path) -> Any:
    """
    Read a zip file of `torch.save`, or the state dict in a file of `torch.jit.save`, on the CPU.

    Returns:
        The saved tensors, numbers, strings and containers. An object of any other class becomes a `dict` of its
        attributes, and the result of a function an empty `dict`.

    Raises:
        [`ArchiveRefused`]: if the file calls something other than data; also see [`check_archive`].
        `pickle.UnpicklingError`: if the file is not such an archive, or is damaged.
    """
    check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            root = next(name for name in names if name.endswith("/data.pkl")).removesuffix("data.pkl")
            with archive.open(f"{root}data.pkl") as file:
                content = _InertUnpickler(file, archive, root).load()
        return _state_dict(content) if f"{root}constants.pkl" in names else content
    except ArchiveRefused:
        raise
    except Exception as error:  # a damaged pickle can raise any exception
        raise pickle.UnpicklingError(f"{path} is not a readable archive of PyTorch: {error!r}") from error


class _Inert(dict):
    """Hold the attributes, or the dictionary items, of an object of any class."""

    def __init__(self, *args):
        super().__init__()

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.update(state)


class _Uncallable(type):
    """Metaclass of classes that a pickle may name as the class of an object, but must not call."""

    def __call__(cls, *args, **kwargs):
        raise ArchiveRefused(
            f"its pickle calls `{cls.__name__}`, which no checkpoint needs and which could run code. No code was run."
        )


class _InertUnpickler(pickle.Unpickler):
    def __init__(self, file, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self.archive, self.root, self.storages = archive, root, {}

    def find_class(self, module: str, name: str):
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        # PyTorch writes pickles with module names of Python 2.
        module, name = NAME_MAPPING.get((module, name), (module, name))
        module = IMPORT_MAPPING.get(module, module)
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) in known:
            return known[module, name]
        # An object that is created without a call and then gets its attributes (`NEWOBJ`, `BUILD`) may be of any
        # class. A call (`REDUCE`) must be harmless: the call of an enumeration looks like that of a command.
        name = f"{module}.{name}"
        return _Inert if HARMLESS_CALLS.fullmatch(name) else _Uncallable(name, (_Inert,), {})

    def persistent_load(self, pid):
        _, dtype, key, *_ = pid  # "storage", its type, its name, device, number of elements
        if (dtype, key) not in self.storages:  # several tensors may be views of one
            content = bytearray(self.archive.read(f"{self.root}data/{key}"))
            empty = torch.empty(0, dtype=dtype)
            self.storages[dtype, key] = torch.frombuffer(content, dtype=dtype) if content else empty
        return self.storages[dtype, key]


def _rebuild_tensor(storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_):
    return storage.as_strided(size, stride, offset)


def _state_dict(module: dict, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a TorchScript module and its submodules by name."""
    tensors = {}
    for name, value in module.items():
        if isinstance(value, torch.Tensor):
            tensors[f"{prefix}{name}"] = value
        elif isinstance(value, _Inert):
            tensors.update(_state_dict(value, f"{prefix}{name}."))
    return tensors
