"""Read the tensors of PyTorch's files, even beside objects of any class, without running code in them.

`torch.load(weights_only=True)` refuses two kinds of published checkpoints: OpenAI's CLIP, which is TorchScript, and
those that hold the training's configuration as an object (ViFi-CLIP's yacs node). `torch.jit.load` and ordinary
unpickling read them, but run their code: PyTorch advises to treat a TorchScript file as a program. All files hold a
pickle and the bytes of the tensors, in a zip file or, before PyTorch 1.6, one after the other. The unpickler below
reads them: it knows tensors and dictionaries, and makes an inert object of everything else. It refuses a pickle that
calls anything but constructors of data (a system function, another package's class), although it would not run the
call: no checkpoint needs one.

A file must not take more memory or time than its size allows, whatever it claims. Each byte of a tensor is read once.
The operations of a pickle are counted, because each can make an object that is larger than the operation.
"""

import pickle
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from configuration_ezclip import truncated_repr


DTYPES = {
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.ShortStorage": torch.int16,
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
# Operations of a pickle that push their argument
LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# An operation makes at most about so many bytes of objects, besides its argument.
OPERATION_BYTES = 256
# Any pickle may take so much memory. A CLIP of 300 tensors has 9,000 operations, with optimizer three times as many.
MIN_PICKLE_MEMORY = 2**26
LEGACY_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001


class ArchiveRefused(pickle.UnpicklingError):
    """A file calls something other than data, or would take more memory than a checkpoint of its size."""


def read_archive(path: str | Path) -> Any:
    """
    Read a file of `torch.save`, or the state dict in a file of `torch.jit.save`, on the CPU.

    Returns:
        The saved tensors, numbers, strings and containers. A set becomes a `list`, and an object of any other class
        a `dict` of its attributes. The result of a function, and a tensor that is not dense and real, become an empty
        `dict`.

    Raises:
        [`ArchiveRefused`]: if the file calls something other than data, or claims more than it holds.
        `pickle.UnpicklingError`: if the file is not such a file, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            num_bytes, head = Path(path).stat().st_size, file.read(32)
            file.seek(0)
            if head.startswith(b"PK"):
                return _read_zip(file, num_bytes)
            if LEGACY_MAGIC_NUMBER.to_bytes(10, "little") in head:
                return _read_legacy(file, num_bytes)
    except ArchiveRefused:
        raise
    except Exception as error:  # a damaged file can raise any exception
        raise pickle.UnpicklingError(f"{path} is not a readable file of PyTorch: {error!r:.200}") from error
    raise pickle.UnpicklingError(f"{path} has another format.")


def _read_zip(file: BufferedReader, num_bytes: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        parts = _check_parts(archive.infolist(), num_bytes)
        root = next(name for name in parts if name.endswith("/data.pkl")).removesuffix("data.pkl")
        if f"{root}byteorder" in parts and archive.read(parts[f"{root}byteorder"]) != b"little":
            raise ArchiveRefused("its tensors must be little-endian.")

        def load_storage(key: str, size: int) -> bytearray:
            part = parts[f"{root}data/{key}"]
            if part.file_size != size:
                raise ArchiveRefused(f"its `{part.filename}` must have {size:,} bytes, got {part.file_size:,}.")
            return bytearray(archive.read(part))

        unpickler = _InertUnpickler(load_storage, num_bytes)
        content = unpickler.load(archive.read(parts[f"{root}data.pkl"]))
    return _state_dict(content, num_bytes) if f"{root}constants.pkl" in parts else content


def _check_parts(entries: list[zipfile.ZipInfo], num_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """
    Return the parts of a zip file by name. Raise if they take more memory than the file has bytes.

    PyTorch compresses only the program of TorchScript (`code/`), which is never read.
    """
    parts, end = {}, 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if "/code/" in f"/{entry.filename}":
            continue
        name = truncated_repr(entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ArchiveRefused(f"its part {name} is compressed, which PyTorch never does.")
        if entry.filename in parts:
            raise ArchiveRefused(f"it has two parts {name}.")
        if entry.header_offset < end:
            raise ArchiveRefused(f"its part {name} overlaps another part.")
        end = entry.header_offset + entry.file_size
        if end > num_bytes:
            raise ArchiveRefused(f"its part {name} claims to be larger than the whole.")
        if entry.CRC == 0:  # `torch.serialization.set_crc32_options(False)` writes no checksums
            del entry.CRC
        parts[entry.filename] = entry
    return parts


@dataclass
class _BoundedReader:
    """Read a file. A read never allocates more than the size of the file."""

    file: BufferedReader
    num_bytes: int

    def read(self, size: int) -> bytes:
        return self.file.read(min(size, self.num_bytes))

    def readline(self) -> bytes:
        return self.file.readline()


def _read_legacy(file: BufferedReader, num_bytes: int) -> Any:
    """Read five pickles (the fourth is the content), then for each storage its number of elements and its bytes."""
    buffers, num_left = {}, num_bytes

    def allocate_storage(key: str, size: int) -> bytearray:
        nonlocal num_left
        num_left -= size
        if num_left < 0:
            raise ArchiveRefused("its tensors claim to be larger than the whole.")
        buffers[key] = bytearray(size)
        return buffers[key]

    reader, unpickler = _BoundedReader(file, num_bytes), _InertUnpickler(allocate_storage, num_bytes)
    magic_number, version, system = (unpickler.load(reader) for _ in range(3))
    if (magic_number, version, system["little_endian"]) != (LEGACY_MAGIC_NUMBER, LEGACY_VERSION, True):
        raise ArchiveRefused("its tensors must be little-endian, in the format of PyTorch 0.4 or later.")
    content, keys = unpickler.load(reader), unpickler.load(reader)
    if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(buffers):
        raise ArchiveRefused("it must hold the bytes of exactly the tensors in its pickle.")
    for key in keys:
        num_elements = int.from_bytes(file.read(8), "little")
        if num_elements != len(unpickler.storages[key]) or file.readinto(buffers[key]) != len(buffers[key]):
            raise ArchiveRefused(f"its storage {truncated_repr(key)} must have as many bytes as its pickle says.")
    return content


class _Inert(dict):
    """Hold the attributes, or the dictionary items, of an object of any class."""

    __slots__ = ()


@dataclass(frozen=True)
class _Global:
    """Name a class or a function without importing it."""

    name: str


class _InertUnpickler:
    """
    Read pickles of data. Objects are inert.

    Args:
        load_storage (`Callable[[str, int], bytearray]`):
            Return the bytes of a storage, from its name and its number of bytes.
        num_bytes (`int`):
            The size of the file, which limits the number of operations.
    """

    def __init__(self, load_storage: Callable[[str, int], bytearray], num_bytes: int):
        self.load_storage = load_storage
        self.num_operations = (num_bytes + MIN_PICKLE_MEMORY) // OPERATION_BYTES
        self.storages: dict[str, torch.Tensor] = {}

    def load(self, data) -> Any:
        """Read one pickle."""
        stack, marks, memo = [], [], {}

        def pop_mark() -> list:
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
            return items

        for opcode, arg, _ in pickletools.genops(data):
            self._count(1)
            name = opcode.name
            if name in LITERALS:
                stack.append(arg)
            elif name in CONSTANTS:
                stack.append(CONSTANTS[name])
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[arg] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[arg])
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("TUPLE", "FROZENSET"):
                stack.append(tuple(pop_mark()))
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            elif name == "EMPTY_DICT":
                stack.append({})
            elif name in ("EMPTY_LIST", "EMPTY_SET"):
                stack.append([])
            elif name == "APPEND":
                _extend(stack[-2], [stack.pop()])
            elif name in ("APPENDS", "ADDITEMS"):
                items = pop_mark()
                _extend(stack[-1], items)
            elif name == "SETITEM":
                value, key = stack.pop(), stack.pop()
                _update(stack[-1], [key], [value])
            elif name == "SETITEMS":
                items = pop_mark()
                _update(stack[-1], items[::2], items[1::2])
            elif name == "GLOBAL":
                stack.append(_find_global(*str(arg).split(" ", 1)))
            elif name == "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_find_global(module, name))
            elif name == "REDUCE":
                args, function = stack.pop(), stack.pop()
                stack.append(_call(function, args))
            elif name in ("NEWOBJ", "NEWOBJ_EX"):
                # An object that is created without a call and then gets its attributes may be of any class. A call
                # must be harmless: the call of an enumeration looks like that of a command.
                del stack[-2 if name == "NEWOBJ" else -3 :]
                stack.append(_Inert())
            elif name == "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], _Inert) and isinstance(state, dict):
                    self._count(len(state))
                    stack[-1].update(state)
            elif name == "BINPERSID":
                stack.append(self._load_persistent(stack.pop()))
            elif name not in ("PROTO", "FRAME", "STOP"):
                raise ArchiveRefused(f"its pickle has the operation {name}, which PyTorch never writes.")
        return stack.pop()

    def _count(self, num_operations: int):
        self.num_operations -= num_operations
        if self.num_operations < 0:
            raise ArchiveRefused("its pickle has more operations than that of a checkpoint of its size.")

    def _load_persistent(self, pid) -> Any:
        match pid:
            case ("module", cls, _, _):
                return cls
            # The last is the part that is viewed: `None` in each file of PyTorch 0.4 or later
            case ("storage", torch.dtype() as dtype, str(key), _, int(num_elements), *view) if view in ([], [None]):
                if key not in self.storages:  # several tensors may be views of one
                    content = self.load_storage(key, num_elements * dtype.itemsize)
                    self.storages[key] = (
                        torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
                    )
                storage = self.storages[key]
                if (storage.dtype, len(storage)) != (dtype, num_elements):
                    raise ArchiveRefused(f"its storage {truncated_repr(key)} has two types or sizes.")
                return storage
            case ("storage", _Global(), *_):  # of complex or quantized numbers
                return _Inert()
        raise ArchiveRefused("its pickle refers to an object outside of it that is not a tensor's storage.")


def _find_global(module: str, name: str) -> Any:
    # PyTorch writes pickles with module names of Python 2.
    module, name = NAME_MAPPING.get((module, name), (module, name))
    name = f"{IMPORT_MAPPING.get(module, module)}.{name}"
    return DTYPES.get(name, _Global(name))


def _call(function: _Global, args: Iterable) -> Any:
    if function.name in KNOWN_CALLS:
        return KNOWN_CALLS[function.name](*args)
    if not HARMLESS_CALLS.fullmatch(function.name):
        raise ArchiveRefused(
            f"its pickle calls `{function.name[:200]}`, which no checkpoint needs and which could run code. No code "
            "was run."
        )
    return _Inert()


def _rebuild_tensor(storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_) -> Any:
    return storage.as_strided(size, stride, offset) if isinstance(storage, torch.Tensor) else _Inert()


KNOWN_CALLS = {
    "collections.OrderedDict": lambda *_: {},
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": lambda function, cls, args, state: _call(function, args),
}


def _extend(target: Any, items: list):
    if isinstance(target, list):
        target.extend(items)


def _update(target: Any, keys: list, values: list):
    if isinstance(target, dict):
        target.update(zip(map(_key, keys), values))


def _key(key: Any) -> Any:
    """Replace a key that is not a string or a small number, because hashing a nested tuple can take forever."""
    return key if isinstance(key, str) or (isinstance(key, int) and key.bit_length() <= 32) else object()


def _state_dict(module: dict, num_bytes: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a TorchScript module and its submodules by name. Raise if they are more than the file."""
    tensors, modules = {}, [("", module)]
    for prefix, module in modules:
        for key, value in module.items():
            name = f"{prefix}{key}"
            num_bytes -= 100 + len(name)  # modules can share submodules, or hold themselves
            if num_bytes < 0:
                raise ArchiveRefused("its modules hold each other more often than the file has bytes.")
            if isinstance(value, torch.Tensor):
                tensors[name] = value
            elif isinstance(value, _Inert):
                modules.append((f"{name}.", value))
    return tensors
