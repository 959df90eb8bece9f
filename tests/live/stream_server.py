"""Serve a looped video file over HTTP or RTSP at its own rate, as a camera does, and cut connections when asked."""

import contextlib
import http.server
import itertools
import socketserver
import struct
import threading
import time

import av


class _Server(socketserver.ThreadingTCPServer):
    """
    A server on the loopback whose every path is the looped video, remuxed as an endless MPEG-TS.

    Args:
        path: A video file with one video stream.
        stop_after: Packets after which a connection sends nothing more, and stays open.
    """

    daemon_threads = allow_reuse_address = True

    def __init__(self, path, stop_after: int | None = None):
        self.path, self.stop_after = str(path), stop_after
        self.is_down, self.connections = False, []
        super().__init__(("127.0.0.1", 0), self.handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def cut(self):
        """Break all connections off."""
        for handler in self.connections:
            handler.is_cut = True

    def __exit__(self, *_):
        self.cut()
        self.shutdown()
        self.server_close()


class _Sender:
    """What a handler needs to send the video."""

    is_cut, num_sent = False, 0

    def send_video(self):
        self.server.connections.append(self)
        with contextlib.suppress(OSError, av.FFmpegError):
            self._send_loops()
        self.server.connections.remove(self)

    def _send_loops(self):
        began, offset = time.monotonic(), 0
        with av.open(self, "w", format="mpegts", options={"flush_packets": "1"}) as output:
            for loop in itertools.count():
                with av.open(self.server.path) as video:
                    source = video.streams.video[0]
                    if loop == 0:
                        stream = output.add_stream_from_template(source)
                    for packet in video.demux(source):
                        if packet.dts is None:
                            continue
                        packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                        due = float(packet.dts * packet.time_base)
                        time.sleep(max(0.0, began + due - time.monotonic()))
                        output.mux(packet)
                        self._wait_or_break()
                    offset += source.duration

    def _wait_or_break(self):
        self.num_sent += 1
        while self.num_sent == self.server.stop_after and not self.is_cut:
            time.sleep(0.05)
        if self.is_cut:
            raise OSError("cut")


class _HttpHandler(_Sender, http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(503 if self.server.is_down else 200)
        self.send_header("Content-Type", "video/mp2t")
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        if not self.server.is_down:
            self.send_video()

    def write(self, data):
        self.wfile.write(data)
        return len(data)

    def log_message(self, *_):
        pass


class StreamServer(_Server):
    handler = _HttpHandler

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/camera.ts"


SDP = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"


class _RtspHandler(_Sender, socketserver.StreamRequestHandler):
    """MPEG-TS in RTP, interleaved in the connection of RTSP (RFC 2326, 10.12; RFC 2250)."""

    def handle(self):
        while request := self._read_request():
            method, number = request
            sdp = (
                b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"
            )
            body = sdp if method == "DESCRIBE" else b""
            lines = ["RTSP/1.0 200 OK", f"CSeq: {number}", "Session: 1", f"Content-Length: {len(body)}"]
            lines += ["Public: DESCRIBE, SETUP, PLAY, TEARDOWN", "Content-Type: application/sdp"]
            lines += ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1"]
            self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body)
            if method == "PLAY":
                self.waiting, self.number = b"", 0
                return self.send_video()

    def _read_request(self) -> tuple[str, str] | None:
        lines = list(iter(lambda: self.rfile.readline().decode().strip(), ""))
        number = next((line.split(":")[1].strip() for line in lines if line.lower().startswith("cseq")), "")
        return (lines[0].split()[0], number) if lines else None

    def write(self, data):
        self.waiting += bytes(data)
        while len(self.waiting) >= 188:
            part, self.waiting = self.waiting[: 7 * 188], self.waiting[7 * 188 :]
            ticks = int(time.monotonic() * 90000) & 0xFFFFFFFF
            rtp = struct.pack(">BBHII", 0x80, 33, self.number & 0xFFFF, ticks, 1) + part
            self.wfile.write(struct.pack(">cBH", b"$", 0, len(rtp)) + rtp)
            self.number += 1
        return len(data)


class RtspServer(_Server):
    handler = _RtspHandler

    @property
    def address(self) -> str:
        return f"rtsp://127.0.0.1:{self.server_address[1]}/camera"
