"""What the bytes of a video file say before any frame is decoded: whether it is whole, and what its packets hold."""

import re
from typing import BinaryIO


BOXES = {b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"mfra", b"sidx", b"uuid", b"pnot"}
EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
# Some writers are a few bytes off.
SLACK = 16
MIN_MPEG4_BYTES = 16


def find_cut(file: BinaryIO) -> tuple[int, int] | None:
    """
    Whether the end of a file is missing, by the sizes that AVI, Matroska, WebM, MP4 and QuickTime files store.

    Args:
        file (`BinaryIO`):
            The file, seekable.

    Returns:
        `tuple[int, int]`, *optional*: how many bytes there are and should be, if those are more.
    """
    there = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF":
        promised = int.from_bytes(head[4:8], "little") + 8
    elif head[:4] == EBML:
        promised = _end_of_segment(file)
    else:
        promised = _end_of_boxes(file, there)
    return (there, promised) if promised > there + SLACK else None


def _end_of_segment(file: BinaryIO) -> int:
    """Where the segment of a Matroska file ends; 0 where that is unknown, as of a live recording."""
    file.seek(len(EBML))
    size = _read_ebml_size(file)
    if size is None:
        return 0
    file.seek(size, 1)
    if file.read(len(SEGMENT)) != SEGMENT or (size := _read_ebml_size(file)) is None:
        return 0
    return file.tell() + size


def _read_ebml_size(file: BinaryIO) -> int | None:
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1), "big") & (1 << 7 * length) - 1
    return None if value == (1 << 7 * length) - 1 else value


def _end_of_boxes(file: BinaryIO, there: int) -> int:
    """Where the last box of an MP4 or QuickTime file ends; 0 where a file is none."""
    position = 0
    while position < there:
        file.seek(position)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if head[4:8] not in BOXES or size < 8:  # something else, or a box to the end of the file
            break
        position += size
    return position


class PictureCheck:
    """
    Tells packets that hold one picture, and key frames that depend on nothing before them, from those that pretend to.

    Args:
        codec (`str`):
            FFmpeg's name of the codec.
        extradata (`bytes`, *optional*):
            What the container stores for its decoder.
    """

    def __init__(self, codec: str, extradata: bytes | None):
        self.codec, extradata = codec, extradata or b""
        # In MP4 and Matroska the units of H.264 and HEVC follow their sizes; elsewhere they follow start codes.
        position = {"h264": 4, "hevc": 21}.get(codec, 0)
        is_prefixed = extradata[:1] == b"\x01" and len(extradata) > position
        self.size_length = (extradata[position] & 3) + 1 if is_prefixed else None

    def __call__(self, packet: bytes, is_key: bool) -> bool:
        if self.codec == "mpeg4":
            pictures = re.findall(rb"\x00\x00\x01\xb6(.)", packet, re.DOTALL)
            # Shorter ones may say that nothing is coded; a key frame's type is 0.
            is_whole = len(pictures) == 1 and len(packet) >= MIN_MPEG4_BYTES
            return is_whole and not (is_key and pictures[0][0] >> 6)
        if self.codec == "h264":
            return self._check_h264(packet, is_key)
        if self.codec == "hevc":
            kinds = (packet[unit] >> 1 & 63 for unit in self._units(packet))
            first = next((kind for kind in kinds if kind < 32), None)
            return first is not None and (first >= 16 or not is_key)
        if self.codec == "vp9":
            return packet[:1] != b"" and packet[0] >> 6 == 2
        return len(packet) > 2  # of AV1, two bytes are a mark between frames

    def _check_h264(self, packet: bytes, is_key: bool) -> bool:
        has_picture = False
        for unit in self._units(packet):
            kind = packet[unit] & 31
            if kind == 5 or (kind in (1, 2) and not is_key):
                return True
            if kind in (1, 2):
                has_picture = True
                if _h264_slice_type(packet[unit + 1 : unit + 9]) % 5 != 2:  # not intra
                    return False
        return has_picture

    def _units(self, packet: bytes):
        """Where each unit of a packet begins."""
        if self.size_length is None:
            yield from (match.end() for match in re.finditer(rb"\x00\x00\x01(?=.)", packet, re.DOTALL))
            return
        position = 0
        while position + self.size_length < len(packet):
            size = int.from_bytes(packet[position : position + self.size_length], "big")
            yield position + self.size_length
            position += self.size_length + size


def _h264_slice_type(header: bytes) -> int:
    """The second of the numbers that a slice begins with, in Exp-Golomb code."""
    bits, value = bin(1 << 8 * len(header) | int.from_bytes(header, "big"))[3:], 0
    for _ in range(2):
        zeros = len(bits) - len(bits.lstrip("0"))
        code, bits = bits[zeros : 2 * zeros + 1], bits[2 * zeros + 1 :]
        value = int(code or "1", 2) - 1
    return value
