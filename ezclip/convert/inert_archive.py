"""The tensors of PyTorch's zip files, also beside objects of any class, and without running anything that is in them.

`torch.load(weights_only=True)` refuses two kinds of published checkpoints: OpenAI's CLIP, which is TorchScript, and
those that hold the training's configuration as an object (ViFi-CLIP's yacs node). `torch.jit.load` and an ordinary
unpickling would read them, and run code of theirs: PyTorch's own advice is to treat a TorchScript file as a program.
A file of either kind is a zip with a pickle and the bytes of its tensors, which the unpickler below reads. It knows
tensors and dictionaries, and makes an inert object of everything else. A pickle that calls what is no part of data, a
system function or another package's class for example, is refused, though the call would not happen: no checkpoint
needs it. So is a file that unpacks to more than it has bytes.
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


# What pickles of data call: containers, dates, paths and numbers of the standard library, NumPy's and PyTorch's arrays
HARMLESS_CALLS = re.compile(
    r"builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice|str|tuple)"
    r"|(collections|datetime|decimal|fractions|pathlib(\._local)?|uuid)\.\w+"
    r"|_codecs\.encode|copyreg\._reconstructor"
    r"|argparse\.Namespace|types\.SimpleNamespace"
    r"|numpy(\._?core\.\w+)?\.(_reconstruct|scalar|dtype|ndarray|_frombuffer)"
    r"|torch\._utils\._rebuild_\w+|torch\.jit\._pickle\.\w+|torch\.(device|dtype|Size)"
    r"|torch\.serialization\._get_layout|torch\.storage\.\w+"
)


# Of a checkpoint the pickle has a hundred bytes a tensor; unpacked, a pickle can take sixty times its size.
MAX_PICKLE_BYTES = 2**26


class ArchiveRefused(pickle.UnpicklingError):
    """A file calls what is no part of data, or would take more memory than a checkpoint of its size."""


def check_archive(path: str | Path) -> bool:
    """
    That nothing in a zip file of PyTorch's takes more memory than the file has bytes, before any of it is read.

    PyTorch compresses nothing but the program of TorchScript (`code/`), which is not read.

    Args:
        path (`str` or `Path`):
            The file. One that is no zip file is not looked at.

    Returns:
        `bool`: whether it is TorchScript, which `torch.load` up to PyTorch 2.5 runs, also with `weights_only=True`.

    Raises:
        [`ArchiveRefused`]: if something in it is compressed, or larger than it may be.
        `pickle.UnpicklingError`: if it begins as a zip file and is none.
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
            raise ArchiveRefused(f"its `{entry.filename}` is compressed, which PyTorch's never are.")
        if entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE_BYTES:
            raise ArchiveRefused(
                f"its `{entry.filename}` has {entry.file_size:,} bytes, and a checkpoint's at most "
                f"{MAX_PICKLE_BYTES:,}."
            )
    if sum(entry.file_size for entry in entries) > Path(path).stat().st_size:
        raise ArchiveRefused("it says of its parts that they are larger than the whole.")
    return any(entry.filename.rpartition("/")[2] == "constants.pkl" for entry in entries)


def read_archive(path: str | Path) -> Any:
    """
    What a zip file of `torch.save` holds, or the state dict of one of `torch.jit.save`, on the CPU.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        Tensors, numbers, strings and containers as they were saved. An object of any other class is a `dict` of its
        attributes, and what a function would have made an empty one.

    Raises:
        [`ArchiveRefused`]: if it calls a function or class that makes no data, or see [`check_archive`].
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
    except Exception as error:  # a damaged pickle can raise any
        raise pickle.UnpicklingError(f"{path} is not a readable archive of PyTorch's: {error!r}") from error


class _Inert(dict):
    """Stands for an object of any class: its attributes, and the items of a dictionary."""

    def __init__(self, *args):
        super().__init__()

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.update(state)


class _Uncallable(type):
    """Of classes whose objects a pickle may hold, but that it may not call."""

    def __call__(cls, *args, **kwargs):
        raise ArchiveRefused(
            f"its pickle calls `{cls.__name__}`, which no checkpoint needs and which could run code. Nothing of it "
            "was run."
        )


def _stand_in(name: str) -> type:
    """
    What stands for a class or a function that a pickle names.

    An object that is made without a call and then given its attributes (`NEWOBJ`, `BUILD`) can be of any class. A call
    (`REDUCE`) is one of a pickle of data, or refused: that of an enumeration looks like that of a command.
    """
    return _Inert if HARMLESS_CALLS.fullmatch(name) else _Uncallable(name, (_Inert,), {})


class _InertUnpickler(pickle.Unpickler):
    def __init__(self, file, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self.archive, self.root, self.storages = archive, root, {}

    def find_class(self, module: str, name: str):
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            ("torch._utils", "_rebuild_parameter"): _first,
        }
        # Modules and names of Python 2, which PyTorch's pickles give
        module, name = NAME_MAPPING.get((module, name), (module, name))
        module = IMPORT_MAPPING.get(module, module)
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        return known.get((module, name)) or _stand_in(f"{module}.{name}")

    def persistent_load(self, pid):
        _, dtype, key, *_ = pid  # "storage", its type, its name, device, number of elements
        if (dtype, key) not in self.storages:  # several tensors may be views of one
            content = bytearray(self.archive.read(f"{self.root}data/{key}"))
            self.storages[dtype, key] = (
                torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        return self.storages[dtype, key]


def _view(storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_) -> torch.Tensor:
    return storage.as_strided(size, stride, offset)


def _first(tensor: torch.Tensor, *_) -> torch.Tensor:
    return tensor


def _state_dict(module: dict, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a TorchScript module and of those within it, by name. (A traced one has no passing tensors.)"""
    tensors = {}
    for name, value in module.items():
        if isinstance(value, torch.Tensor):
            tensors[f"{prefix}{name}"] = value
        elif isinstance(value, _Inert):
            tensors.update(_state_dict(value, f"{prefix}{name}."))
    return tensors
