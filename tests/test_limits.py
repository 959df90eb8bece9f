"""What strangers' files, addresses and pictures may take: each limit, with files and servers that the tests make."""

import contextlib
import gzip
import http.server
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from fsspec.implementations.http import HTTPFileSystem
from PIL import Image

import video_ezclip
from ezclip import EZClipProcessor, ReadLimits, VideoReadError
from ezclip.data import IsolatedReader
from ezclip.timeline.frame_streams import FrameStream
from ezclip.utils.synthetic_clips import write_video
from processing_ezclip import default_image_processor
from tests.helpers import ROOT, random_clip
from video_ezclip import read_frames, uniform_frame_indices


SMALL = ReadLimits(max_pixels=100_000)


def read_stream(path, limits):
    with FrameStream(str(path), limits=limits) as stream:
        for frame in stream:
            frame.cropped(lambda frames: frames[:, :2, :2])


def read_isolated(path, limits):
    with IsolatedReader(limits=limits) as read:
        read(str(path))


def read_all(path, limits):
    read_frames(str(path), limits=limits)


READERS = pytest.mark.parametrize("read", [read_all, read_stream, read_isolated])


def peak_megabytes(statement: str, *argv) -> float:
    """Run a statement in a process of its own; return how much more memory it took than the imports."""
    program = (
        "import sys, resource\n"
        "from video_ezclip import *\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        f"before = peak()\ntry:\n    {statement}\nexcept VideoReadError as error:\n    print(error, file=sys.stderr)\n"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", program, *map(str, argv)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    return float(done.stdout)


# ---- What is opened ----


def write_frames(path, size, num_frames=3, codec="mpeg4", **options):
    width, height = size
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, 10)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(num_frames):
            picture = np.full((height, width, 3), number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    return path


def playlist(tmp_path):
    write_frames(tmp_path / "0.ts", (96, 64), codec="libx264", format="mpegts")
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.3,\n0.ts\n#EXT-X-ENDLIST\n")
    return path


def concat_list(tmp_path):
    write_frames(tmp_path / "0.ts", (96, 64), codec="libx264", format="mpegts")
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile '0.ts'\n")
    return tmp_path / "list.ffconcat"


def session(tmp_path):
    (tmp_path / "a.sdp").write_text(
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n"
    )
    return tmp_path / "a.sdp"


def notes(tmp_path):
    (tmp_path / "notes.txt").write_text("not a video\n" * 50)
    return tmp_path / "notes.txt"


@READERS
@pytest.mark.parametrize("write", [playlist, concat_list, session, notes])
def test_only_files_of_videos_are_opened(write, read, tmp_path):
    with pytest.raises(VideoReadError, match="is not a video file"):
        read(write(tmp_path), ReadLimits())


@pytest.mark.parametrize("write", [playlist, concat_list])
def test_playlists_behind_an_option(write, tmp_path):
    frames, metadata = read_frames(str(write(tmp_path)), limits=ReadLimits(allow_playlists=True))
    assert frames.shape == (3, 64, 96, 3) and metadata.codec == "h264"


def test_bytes_of_a_playlist_reach_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoReadError):
        read_frames(concat_list(tmp_path).read_bytes())


def test_name_with_a_pattern_is_no_sequence(tmp_path):
    picture = Image.fromarray(random_clip(0, 1)[0])
    for name in ("a%d.png", "a1.png", "a2.png"):
        picture.save(tmp_path / name)
    with pytest.raises(VideoReadError, match=r"a%d\.png: is a picture"):
        read_frames(str(tmp_path / "a%d.png"))


# ---- Pixels, packets, memory ----


def huge_gif(tmp_path, side=16000):
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    (tmp_path / "huge.gif").write_bytes(head + 2 * frame + b";")
    return tmp_path / "huge.gif"


def growing_transport_stream(tmp_path):
    parts = [write_frames(tmp_path / f"{w}.ts", (w, 64), codec="libx264", format="mpegts") for w in (96, 1920)]
    (tmp_path / "growing.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    return tmp_path / "growing.ts"


def growing_motion_jpeg(tmp_path):
    parts = [write_frames(tmp_path / f"{w}.mjpeg", (w, 64), codec="mjpeg", format="mjpeg") for w in (96, 1920)]
    (tmp_path / "growing.mjpeg").write_bytes(b"".join(part.read_bytes() for part in parts))
    return tmp_path / "growing.mjpeg"


def large_frames(tmp_path):
    return write_frames(tmp_path / "large.mp4", (1920, 64))


@READERS
@pytest.mark.parametrize("write", [huge_gif, growing_transport_stream, growing_motion_jpeg, large_frames])
def test_pixels_of_each_frame(write, read, tmp_path):
    with pytest.raises(VideoReadError, match="pixels; `max_pixels` is 100,000"):
        read(write(tmp_path), SMALL)


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_pixels_of_key_frames_for_other_backends(backend, tmp_path):
    pytest.importorskip(backend, exc_type=ImportError)
    with pytest.raises(VideoReadError, match="`max_pixels`"):
        read_frames(str(growing_transport_stream(tmp_path)), limits=SMALL, backend=backend)


def test_partial_reading_has_the_same_limits(tmp_path):
    with pytest.raises(VideoReadError, match="`max_pixels`"):
        read_frames(str(growing_transport_stream(tmp_path)), limits=SMALL, allow_partial=True)


def test_huge_gif_takes_no_memory(tmp_path):
    assert peak_megabytes("read_frames(sys.argv[1])", huge_gif(tmp_path)) < 100


def add_chunks(path, tag: bytes, count: int):
    """Add chunks of one byte to an AVI file."""
    content = path.read_bytes()
    start = content.index(b"movi") - 4
    (size,) = struct.unpack("<I", content[start : start + 4])
    body = content[start + 4 : start + 4 + size] + (tag + struct.pack("<I", 1) + b"U\0") * count
    content = content[:start] + struct.pack("<I", len(body)) + body
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    return path


@READERS
@pytest.mark.parametrize("tag", [b"00dc", b"01wb"])
def test_packets_of_all_streams(tag, read, tmp_path):
    path = tmp_path / "many.avi"
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("mpeg4", 10), container.add_stream("pcm_s16le", 8000, layout="mono")
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8))))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        samples.rate, samples.time_base = 8000, Fraction(1, 8000)
        container.mux(sound.encode(samples))
        container.mux(video.encode())
    read(path, ReadLimits(max_packets=2000))
    add_chunks(path, tag, 3000)
    with pytest.raises(VideoReadError, match="more packets than allowed; `max_packets` is 2,000"):
        read(path, ReadLimits(max_packets=2000))


def test_many_packets_take_little_memory(tmp_path):
    path = add_chunks(write_frames(tmp_path / "many.avi", (96, 64)), b"00dc", 300_000)
    assert peak_megabytes("read_frames(sys.argv[1], lambda n: [0], allow_partial=True)", path) < 200


@pytest.mark.parametrize("read", [read_all, read_stream])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_samples_that_a_file_claims(is_compressed, read, tmp_path):
    path = write_frames(tmp_path / "a.mp4", (96, 64))
    content = path.read_bytes()
    start = content.index(b"stsz") + 4
    content = content[:start] + struct.pack(">III", 0, 1, 80_000_000) + content[start + 12 :]
    if is_compressed:
        start = content.index(b"moov") - 4
        header = struct.pack(">I", len(content) - start) + zlib.compress(content[start:])
        for name in (b"cmvd", b"cmov", b"moov"):
            header = struct.pack(">I4s", len(header) + 8, name) + header
        content = content[:start] + header
    path.write_bytes(content)
    with pytest.raises(VideoReadError, match="claims more samples than allowed; `max_packets` is 2,000,000"):
        read(path, ReadLimits())


def test_stream_may_have_any_length(tmp_path):
    path = write_frames(tmp_path / "long.mp4", (96, 64), num_frames=50)
    read_stream(path, ReadLimits(max_packets=20))
    with pytest.raises(VideoReadError, match="`max_packets`"):
        read_all(path, ReadLimits(max_packets=20))


def test_frames_are_transformed_as_they_are_decoded(tmp_path):
    write_video(tmp_path / "a.mp4", random_clip(0, 40))
    limits, crop = ReadLimits(max_clip_bytes=40 * 4 * 4 * 3), lambda frame: frame[:4, :4]
    frames, metadata = read_frames(str(tmp_path / "a.mp4"), transform=crop, limits=limits)
    assert frames.shape == (40, 4, 4, 3) and (metadata.height, metadata.width) == (48, 64)
    assert np.array_equal(frames, read_frames(str(tmp_path / "a.mp4"))[0][:, :4, :4])
    for read in (read_all, read_isolated):
        with pytest.raises(VideoReadError, match="do not fit|than fit into memory; `max_clip_bytes` is 1,920"):
            read(tmp_path / "a.mp4", limits)
    with IsolatedReader(limits=limits) as read:
        assert np.array_equal(read(str(tmp_path / "a.mp4"), transform=crop)[0], frames)


def test_clip_never_holds_full_size_frames(tmp_path):
    path = write_frames(tmp_path / "a.mp4", (1920, 1088), num_frames=60)
    full_size = 60 * 1920 * 1088 * 3 / 2**20
    assert peak_megabytes("read_frames(sys.argv[1], transform=lambda frame: frame[::16, ::16])", path) < full_size / 3


def test_errors_of_a_transform_are_not_those_of_the_video(tmp_path):
    write_video(tmp_path / "a.mp4", random_clip(0))
    for read in (read_frames, IsolatedReader()):
        with pytest.raises(ZeroDivisionError):
            read(str(tmp_path / "a.mp4"), transform=lambda frame: 1 / 0)
    assert read(str(tmp_path / "a.mp4"))[0].shape == (12, 48, 64, 3)  # the child is not confused


def test_share_of_memory(tmp_path):
    path = write_frames(tmp_path / "a.mp4", (8000, 4000))
    with IsolatedReader(max_memory=2**28) as read:
        with pytest.raises(VideoReadError, match="memory"):
            read(str(path))
        write_video(tmp_path / "b.mp4", random_clip(0))
        assert read(str(tmp_path / "b.mp4"))[0].shape == (12, 48, 64, 3)


def test_wide_pixels(tmp_path):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", 10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8))))
        container.mux(stream.encode())
    content = path.read_bytes()
    start = content.index(b"pasp") + 4
    path.write_bytes(content[:start] + struct.pack(">II", 30000, 1) + content[start + 8 :])
    assert read_frames(str(path))[0].shape == (1, 64, 96, 3)
    with pytest.raises(VideoReadError, match="`max_pixels`"):
        read_frames(str(path), square_pixels=True)


def test_long_frames_are_not_resized(tiny_folder):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    with pytest.raises(VideoReadError, match="is 20000 x 4 pixels, more than 100 times as long as short"):
        processor(videos=np.zeros((8, 4, 20000, 3), np.uint8))
    plain = EZClipProcessor(default_image_processor(32), processor.tokenizer, use_published_crop=False)
    with pytest.raises(VideoReadError, match="more than 100 times"):
        plain(videos=np.zeros((8, 4, 20000, 3), np.uint8))


def test_ticks_of_a_video_that_lasts_for_ever(tmp_path):
    path = tmp_path / "ages.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", 10)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 96, 64, "yuv420p", Fraction(1, 10)
        for pts in (0, 10**11):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8))
            frame.pts, frame.time_base = pts, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoReadError, match="too long for 30 frames a second"):
        read_frames(str(path), fps=30)


# ---- Pictures ----


def test_sound_without_compression(tmp_path):
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("mpeg4", 10), container.add_stream("pcm_s16le", 8000, layout="mono")
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8))))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        samples.rate, samples.time_base = 8000, Fraction(1, 8000)
        container.mux(sound.encode(samples))
        container.mux(video.encode())
    assert len(read_frames(str(path), limits=ReadLimits(max_packets=100))[0]) == 1  # of 8000 samples


def test_pictures_by_their_formats(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    marker = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {marker}\n")  # Ghostscript, as Pillow looks for it
    (tmp_path / "gs").chmod(0o755)
    Image.fromarray(random_clip(0, 1)[0]).save(folder / "0.jpg", format="EPS")
    program = f"import PIL.EpsImagePlugin as e; e.gs_binary = {str(tmp_path / 'gs')!r}\nread_frames({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", f"from video_ezclip import read_frames\n{program}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "has an unreadable frame (cannot identify image file" in done.stderr
    assert not marker.exists()


def test_pictures_are_regular_files(tmp_path):
    os.mkfifo(tmp_path / "0.png")
    with pytest.raises(VideoReadError, match="has an unreadable frame: 0.png is not a regular file"):
        read_frames(str(tmp_path))


def huge_png(path, side=30000):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("as_folder", [True, False])
def test_pixels_of_pictures(as_folder, tmp_path):
    path = huge_png(tmp_path / "0.png")
    with pytest.raises(VideoReadError, match="pixels; `max_pixels` is"):
        read_frames(str(tmp_path if as_folder else path))
    assert peak_megabytes("read_frames(sys.argv[1])", tmp_path) < 100


def test_bytes_of_pictures(tmp_path):
    with open(tmp_path / "0.webp", "wb") as file:
        file.write(b"RIFF\xf8\xff\x1f\0WEBPVP8 ")
        file.truncate(2**21)
    for video in (tmp_path, tmp_path / "0.webp"):
        with pytest.raises(VideoReadError, match="a larger file than allowed; `max_download_bytes` is 1,048,576"):
            read_frames(str(video), limits=ReadLimits(max_download_bytes=2**20))


def test_pixels_of_given_images():
    with pytest.raises(VideoReadError, match="`max_pixels`"):
        read_frames([Image.new("1", (400, 300))], limits=SMALL)


def test_pictures_of_an_animation(tmp_path):
    pictures = [Image.fromarray(picture) for picture in random_clip(0, 30)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], lossless=True)
    with pytest.raises(VideoReadError, match="more pictures than allowed; `max_packets` is 20"):
        read_frames(str(tmp_path / "a.webp"), limits=ReadLimits(max_packets=20))
    tiny = ReadLimits(max_clip_bytes=8 * 48 * 64 * 3)  # the frames that are taken
    frames, _ = read_frames(str(tmp_path / "a.webp"), lambda n: uniform_frame_indices(n, 8), limits=tiny)
    assert np.array_equal(frames[0], np.asarray(pictures[uniform_frame_indices(30, 8)[0]]))


# ---- Addresses ----


@contextlib.contextmanager
def serve(answer, host="127.0.0.1", head=lambda handler: handler.send_error(405)):
    """Serve every GET, and every HEAD, by a function of the handler."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            head(self)

        def do_GET(self):
            with contextlib.suppress(OSError):  # the client has enough
                answer(self)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer((host, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{host}:{server.server_port}/clip.mp4"
        server.shutdown()


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(2**16))


def gzip_bomb(handler):
    content = gzip.compress(bytes(2**26))
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def trickle(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"\0")
        time.sleep(0.05)


@pytest.mark.parametrize("read", [read_all, read_isolated])
@pytest.mark.parametrize("answer", [endless, gzip_bomb])
def test_bytes_of_an_answer(answer, read):
    with serve(answer) as url, pytest.raises(VideoReadError, match="`max_download_bytes` is 1,048,576"):
        read(url, ReadLimits(max_download_bytes=2**20))


@pytest.mark.parametrize("read", [read_all, read_stream])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_bytes_of_a_range(encoding, read):
    def head(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(2**16))
        handler.end_headers()

    def more_than_the_range(handler):
        content = gzip.compress(bytes(2**24)) if encoding == "gzip" else bytes(2**24)
        handler.send_response(206)
        handler.send_header("Content-Encoding", encoding)
        handler.end_headers()
        handler.wfile.write(content)

    error = pytest.raises(VideoReadError, match="sends more than the requested range")
    with serve(more_than_the_range, head=head) as url, error:
        read(url, ReadLimits())


@pytest.mark.parametrize("read", [read_all, read_stream])
def test_time_of_an_answer(read):
    with serve(trickle) as url, pytest.raises(VideoReadError, match="cannot be fetched|`max_download_seconds`"):
        read(url, ReadLimits(max_download_seconds=1))


def test_stream_from_an_endless_address():
    with serve(endless) as url, pytest.raises(VideoReadError):
        read_stream(url, ReadLimits(max_download_bytes=2**22))


def test_endless_pipe():
    class Pipe(io.RawIOBase):
        def read(self, size=-1):
            return bytes(size)

    with pytest.raises(VideoReadError, match="`max_download_bytes`"):
        read_frames(Pipe(), limits=ReadLimits(max_download_bytes=2**20))


@pytest.mark.parametrize("content", [bytes(10**6), "text", None])
def test_file_object_that_does_not_keep_to_the_size(content):
    class Pipe:
        def read(self, size=-1):
            return content if size else b""

    with pytest.raises(VideoReadError), FrameStream(Pipe()) as stream:
        next(iter(stream))
    if content != bytes(10**6):
        with pytest.raises(VideoReadError, match="gives no bytes"):
            read_frames(Pipe())


def test_only_public_addresses(tmp_path, loopback_server):
    write_video(tmp_path / "clip.mp4", random_clip(0))
    public = ReadLimits(public_addresses_only=True)
    with loopback_server(tmp_path) as url:
        assert len(read_frames(f"{url}/clip.mp4")[0]) == 12
        for address in (url, url.replace("127.0.0.1", "localhost")):
            with pytest.raises(VideoReadError, match="cannot be fetched"):
                read_frames(f"{address}/clip.mp4", limits=public)
    for address in ("memory://clip.mp4", "ftp://127.0.0.1/a.mp4", f"zip://a::{url}/a.zip"):
        with pytest.raises(VideoReadError, match="is not an address of http or https"):
            read_frames(address, limits=public)


PRIVATE = ["::7f00:1", "::ffff:7f00:1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "fec0::1", "fd00::1"]


@pytest.mark.parametrize("address", [*PRIVATE, "0.0.0.0", "169.254.169.254", "fe80::1%eth0"])
def test_private_addresses_in_other_forms(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(OSError, match="is not a public address"):
        video_ezclip._make_public_socket((family, socket.SOCK_STREAM, 0, "", (address, 80)))


@pytest.mark.parametrize("address", ["64:ff9b::808:808", "2606:4700::1111"])
def test_public_addresses_of_ipv6(address, monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *args: args)
    info = (socket.AF_INET6, socket.SOCK_STREAM, 0, "", (address, 80))
    assert video_ezclip._make_public_socket(info) == info[:3]


@pytest.mark.parametrize("read", [read_all, read_stream])
def test_redirects_to_private_addresses(read, tmp_path, monkeypatch, loopback_server):
    write_video(tmp_path / "clip.mp4", random_clip(0))
    make = video_ezclip._make_public_socket
    connected = []

    def take_one_for_public(info):
        connected.append(info[4][0])
        return make((*info[:4], ("8.8.8.8", 80)) if info[4][0] == "127.0.0.2" else info)

    with loopback_server(tmp_path) as private:

        def redirect(handler):
            handler.send_response(302)
            handler.send_header("Location", f"{private}/clip.mp4")
            handler.end_headers()

        with serve(redirect, "127.0.0.2") as url:
            read(url, ReadLimits())
            HTTPFileSystem.clear_instance_cache()
            monkeypatch.setattr(video_ezclip, "_make_public_socket", take_one_for_public)
            with pytest.raises(VideoReadError, match="127.0.0.1 is not a public address|cannot be fetched"):
                read(url, ReadLimits(public_addresses_only=True))
            assert connected[-1] == "127.0.0.1" and "127.0.0.2" in connected


def test_secrets_of_addresses_are_masked():
    url = "http://me:secret@127.0.0.1:9/a.mp4?v=1&X-Amz-Signature=0123abc&token=t0p"
    with pytest.raises(VideoReadError) as error:
        read_frames(url)
    assert "http://***@127.0.0.1:9/a.mp4?v=1&X-Amz-Signature=***&token=***" in str(error.value)
    assert not any(word in str(error.value) for word in ("secret", "0123abc", "t0p"))


def test_names_are_printable(tmp_path):
    path = tmp_path / "a\x1b[2J\nb\u202e.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(VideoReadError) as error:
        read_frames(str(path))
    assert str(error.value).replace("\n", "").isprintable() and "\\x1b[2J" in str(error.value)


def test_limits_are_numbers_above_0():
    with pytest.raises(ValueError, match="`max_pixels` must be a number above 0, got 0"):
        ReadLimits(max_pixels=0)
