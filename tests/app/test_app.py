"""`ezclip app`: its answers, its errors, its protection of files, and the page in a browser."""

import asyncio
import base64
import contextlib
import http.client
import io
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from PIL import Image

from ezclip import ReadLimits, ZeroShotVideoClassificationPipeline
from ezclip.cli.app import main
from ezclip.errors import DataError
from ezclip.systems.loading import load_model, load_processor
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import ROOT, random_clip


LABELS = ["red circle", "green square", "blue circle"]
TYPED = "red circle, green square\nblue circle"
CHROMIUM = next((path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if os.path.exists(path)), None)
OPTIONS = ["--max_size_mb", "0.5", "--max_total_mb", "40", "--max_seconds", "5"]
OPTIONS += ["--templates", "a {}", "a photo of {}"]
FILE = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def page(tiny_folder, tmp_path_factory):
    """The address of a page, in a process of its own, and its folder for uploads."""
    pytest.importorskip("gradio", reason="the page needs gradio")
    folder = tmp_path_factory.mktemp("uploads")
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, str(ROOT / "scripts" / "app.py"), "--model_name_or_path", str(tiny_folder), *OPTIONS]
    # Gradio takes the first free port after 7860.
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"The page is at (http://127\.0\.0\.1:\d+)", line):
            break
    else:
        pytest.fail(f"no page: {lines}")
    assert "share" not in "".join(lines)
    threading.Thread(target=process.stdout.read, daemon=True).start()
    yield found[1], folder
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert not list(folder.iterdir())  # what visitors gave is gone


@pytest.fixture(scope="module")
def answers(tiny_folder, clips):
    """The pipeline's, clip by clip: label to score, the most likely first."""
    classifier = ZeroShotVideoClassificationPipeline(
        model=load_model(tiny_folder), processor=load_processor(tiny_folder)
    )
    options = {"candidate_labels": LABELS, "hypothesis_template": ["a {}", "a photo of {}"]}
    return [{one["label"]: one["score"] for one in classifier(str(path), **options)} for path in clips]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips of noise."""
    folder = tmp_path_factory.mktemp("clips")
    paths = [folder / f"{number}.mp4" for number in range(3)]
    for number, path in enumerate(paths):
        write_video(path, random_clip(number))
    return paths


def upload(url: str, path) -> str:
    with open(path, "rb") as file:
        answer = requests.post(f"{url}/gradio_api/upload", files={"files": (Path(path).name, file)}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()[0]


def call(url, video, labels=TYPED, background="", window=0.5, stride=0.5, partial=False, sentences="") -> str:
    """What the page answers to a request: its events, as text."""
    data = [video, labels, background, sentences, window, stride, partial]
    answer = requests.post(f"{url}/gradio_api/call/classify", json={"data": data}, timeout=30)
    if answer.status_code != 200:
        return f"{answer.status_code} {answer.text}"
    return requests.get(f"{url}/gradio_api/call/classify/{answer.json()['event_id']}", timeout=60).text


def ask(url: str, path, **kwargs) -> str:
    return call(url, {"path": upload(url, path), "meta": FILE}, **kwargs)


def test_three_visitors(page, clips, answers):
    gradio_client = pytest.importorskip("gradio_client")
    url, _ = page

    def visit(path):
        client = gradio_client.Client(url, verbose=False, download_files=False)
        return client.predict(
            gradio_client.handle_file(path),
            TYPED,
            "",
            "",
            0.5,
            0.5,
            False,
            api_name="/classify",
        )

    with ThreadPoolExecutor(3) as visitors:
        replies = list(visitors.map(visit, clips))
    for path, answer, (scores, segments, _, attention, words) in zip(clips, answers, replies):
        found = {one["label"]: one["confidence"] for one in scores["confidences"]}
        assert found == pytest.approx(answer, abs=1e-4) and scores["label"] == next(iter(answer))
        assert "<td>0.00 s</td>" in segments and str(path.parent) not in segments
        assert words.startswith(f"8 frames of {path.name}, ")
        assert attention["alt_text"] == words


def test_background(page, clips):
    answer = ask(page[0], clips[0], labels="red circle", background="green square, <b>left</b>")
    assert "none of these" in answer and "event: complete" in answer


@pytest.mark.parametrize("kind", ["garbage", "cut", "damaged", "playlist", "long"])
def test_bad_videos(page, clips, tmp_path, kind):
    path, content = tmp_path / "bad.mp4", bytearray(clips[0].read_bytes())
    if kind == "garbage":
        path.write_bytes(b"no video " * 100)
    elif kind == "cut":
        path.write_bytes(content[:900])
    elif kind == "damaged":
        start = content.index(b"mdat") + 800
        content[start : start + 900] = bytes(range(250)) * 3 + bytes(150)
        path.write_bytes(content)
    elif kind == "playlist":
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{clips[1]}\n#EXT-X-ENDLIST\n")
    else:
        write_video(path, random_clip(5, num_frames=48, height=32, width=32))
    sentences = {"cut": "is cut off", "damaged": "cannot be decoded", "long": "is longer than 5 seconds"}
    answer = ask(page[0], path)
    assert f"The video {sentences.get(kind, 'is not a video file')}" in answer
    assert str(page[1]) not in answer and "Traceback" not in answer and "event: complete" not in answer


def test_bad_inputs(page, clips):
    url, _ = page
    assert "There is no video" in call(url, None)
    assert "There are no labels" in ask(url, clips[0], labels=" , \n")
    assert "got 201" in ask(url, clips[0], labels=",".join(f"a{number}" for number in range(201)))
    assert "got 300" in ask(url, clips[0], labels="a" * 300)
    assert "among the" in ask(url, clips[0], labels="red, blue", background="red")
    for options in ({"stride": 0.01}, {"window": 1e9}):
        assert "at most 30 seconds" in ask(url, clips[0], **options)
    assert "at most 32 sentences, got 3000" in ask(url, clips[0], sentences="a {}\n" * 3000)
    assert "sentence must have at most 200 characters" in ask(url, clips[0], sentences="{} a" * 100)
    many = ",".join(f"a{number}" for number in range(150))
    sentences = "\n".join(f"{number} {{}}" for number in range(30))
    assert "must be at most 3200, got 4500" in ask(url, clips[0], labels=many, sentences=sentences)
    assert "texts" in ask(url, clips[0], labels=7)
    for options in ({"window": "2"}, {"window": True}, {"stride": 10**400}):
        assert "must be numbers" in ask(url, clips[0], **options)
    for label in ("\ud800", "\x1b[31mred"):
        assert "no control characters" in ask(url, clips[0], labels=label)


def endless_form():
    """The beginning of a form with a file, in pieces that tell no length."""
    yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="big.mp4"\r\n\r\n'
    for _ in range(64):
        yield bytes(2**16)


def test_large_files(page):
    url, folder = page
    before = {path for path in folder.rglob("*") if path.is_file()}
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Length", str(2 * 2**30))
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.endheaders()
    answer = connection.getresponse()  # before any of it is sent
    assert answer.status == 413 and b"larger than 0.5 MB" in answer.read()
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = requests.post(f"{url}/gradio_api/upload", data=endless_form(), headers=form, timeout=30)
    assert answer.status_code == 413
    assert {path for path in folder.rglob("*") if path.is_file()} == before
    assert requests.post(f"{url}/gradio_api/queue/join", data=b" " * 2**19, timeout=30).status_code == 413


def test_room_for_all_uploads(page, clips):
    url, (large,) = page[0], [folder / "large" for folder in page[1].glob("ezclip-app-*")]
    with open(large, "wb") as file:
        file.truncate(40 * 2**20)
    with open(clips[0], "rb") as file:
        answer = requests.post(f"{url}/gradio_api/upload", files={"files": ("a.mp4", file)}, timeout=30)
    assert answer.status_code == 503 and "try again" in answer.text
    large.unlink()
    upload(url, clips[0])


def test_links_do_not_follow_requests(page):
    url, _ = page
    for name in ("evil.example", "evil.example:7860", "6.6.6.6", "[2001:db8::1]:80"):
        answer = requests.get(f"{url}/config", headers={"Host": name}, timeout=30)
        assert answer.status_code == 421 and name not in answer.text
    forwarded = ("X-Forwarded-Host", "X-Forwarded-Proto", "X-Gradio-Server", "Forwarded")
    answer = requests.get(f"{url}/config", headers=dict.fromkeys(forwarded, "https://evil.example"), timeout=30)
    assert answer.json()["root"] == url and "evil" not in answer.text
    port = url.rpartition(":")[2]
    for name in (f"localhost:{port}", f"127.0.0.1:{port}"):
        assert requests.get(f"{url}/config", headers={"Host": name}, timeout=30).json()["root"] == f"http://{name}"


def test_long_names_of_sessions_are_refused(page):
    for name in ("x" * 101, ["x" * 101]):
        body = {"data": [None, TYPED, "", "", 0.5, 0.5, False], "fn_index": 0, "session_hash": name}
        answer = requests.post(f"{page[0]}/gradio_api/queue/join", json=body, timeout=30)
        assert answer.status_code == 400 and "too long" in answer.text


def test_full_queue_answers_at_once(page, clips):
    url, _ = page
    body = {"data": [None, TYPED, "", "", 0.5, 0.5, False]}
    with ThreadPoolExecutor(16) as visitors:
        ask_one = lambda _: requests.post(f"{url}/gradio_api/call/classify", json=body, timeout=30)  # noqa: E731
        answers = list(visitors.map(ask_one, range(200)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused and all("Queue is full" in answer.text for answer in refused)
    for answer in answers:  # leave the queue empty
        if answer.status_code == 200:
            requests.get(f"{url}/gradio_api/call/classify/{answer.json()['event_id']}", timeout=60)


def test_slow_requests(tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="the page needs gradio")
    from ezclip.app import guard

    monkeypatch.setattr(guard, "MAX_UPLOAD_SECONDS", 0.1)
    arrived, sent = [], []

    async def read(scope, receive, send):
        while (await receive()).get("more_body"):
            pass

    async def receive():
        if len(arrived) == 3:
            await asyncio.sleep(60)
        arrived.append(1)
        return {"type": "http.request", "body": b"a", "more_body": True}

    async def send(message):
        sent.append(message)

    page = guard.Guard(read, str(tmp_path), 2**20, 2**30)
    scope = {"type": "http", "method": "POST", "path": guard.UPLOAD, "headers": [(b"host", b"localhost")]}
    asyncio.run(page(scope, receive, send))
    assert sent[0]["status"] == 408 and page.expected_bytes == 0


@pytest.fixture
def handler(tiny_folder, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="the page needs gradio")
    from ezclip.app.page import AppSettings, _RequestHandler

    classifier = ZeroShotVideoClassificationPipeline(
        model=load_model(tiny_folder), processor=load_processor(tiny_folder)
    )
    with contextlib.closing(_RequestHandler(classifier, AppSettings(templates=("a {}",)), str(tmp_path))) as handler:
        yield handler


def until_scores(answer):
    """Take the outputs of an answer up to the scores. While it reads, its outputs are unchanged: updates of Gradio."""
    next(output for output in answer if output[0] and "__type__" not in output[0])


def test_work_ends_when_a_visitor_leaves(handler, tmp_path):
    write_video(tmp_path / "a.mp4", random_clip(0, num_frames=900))
    write_video(tmp_path / "b.mp4", random_clip(1))
    answer = handler.answer({"path": str(tmp_path / "a.mp4")}, TYPED, window=0.5, stride=0.25)
    until_scores(answer)  # the search goes on
    next(answer)
    answer.close()
    assert not any("ThreadPool" in thread.name for thread in threading.enumerate())
    *_, last = handler.answer({"path": str(tmp_path / "b.mp4")}, TYPED, window=0.5, stride=0.25)
    assert last[-1].startswith("8 frames of b.mp4")


def test_decoding_ends_when_a_visitor_leaves(handler, tmp_path):
    write_video(tmp_path / "a.mp4", random_clip(0))
    list(handler.answer({"path": str(tmp_path / "a.mp4")}, TYPED))
    (child,) = [one for one in psutil.Process().children() if "reader_process" in " ".join(one.cmdline())]
    child.suspend()  # as a decoder that hangs
    answer = handler.answer({"path": str(tmp_path / "a.mp4")}, TYPED)
    next(answer), next(answer)
    answer.close()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not any("ThreadPool" in thread.name for thread in threading.enumerate())


def test_video_that_is_removed_while_it_is_read(handler, tmp_path):
    write_video(tmp_path / "a.mp4", random_clip(0))
    answer = handler.answer({"path": str(tmp_path / "a.mp4")}, TYPED)
    until_scores(answer)
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(Exception, match="upload it again|does not exist"):  # after it was opened, or before
        list(answer)


def test_videos_are_decoded_in_another_process(handler, tmp_path):
    write_video(tmp_path / "a.mp4", random_clip(0))
    before = set(psutil.Process().children())
    list(handler.answer({"path": str(tmp_path / "a.mp4")}, TYPED, window=0.5, stride=0.25))
    (child,) = set(psutil.Process().children()) - before
    child.kill()
    *_, last = handler.answer({"path": str(tmp_path / "a.mp4")}, TYPED, window=0.5, stride=0.25)
    assert last[-1].startswith("8 frames of a.mp4")


@pytest.mark.slow
def test_open_address_is_explained(tiny_folder):
    pytest.importorskip("gradio", reason="the page needs gradio")
    command = [sys.executable, str(ROOT / "scripts" / "app.py"), "--model_name_or_path", str(tiny_folder)]
    process = subprocess.Popen([*command, "--server_name", "0.0.0.0"], stdout=subprocess.PIPE, text=True)
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert "everyone who can reach this machine can use it and upload files, without a password" in lines[1]


def test_remove_old_files(page, clips):
    from ezclip.app.uploads import remove_old_files

    path = Path(upload(page[0], clips[1]))
    remove_old_files(str(page[1]), 60)
    assert path.is_file()
    remove_old_files(str(page[1]), -1)
    remove_old_files(str(page[1]), -1)
    (folder,) = page[1].iterdir()
    assert not list(folder.iterdir())  # nor the folders, which are empty now
    answer = call(page[0], {"path": str(path), "meta": FILE})
    assert "upload it again" in answer


def test_only_uploads_are_served(page, clips, loopback_server, tmp_path):
    url, folder = page
    (tmp_path / "clip.mp4").write_bytes(clips[0].read_bytes())
    link = folder / "link.mp4"
    link.symlink_to(clips[0])
    with loopback_server(tmp_path) as address:
        for path in (
            clips[0],
            "/etc/passwd",
            f"{folder}/../clip.mp4",
            link,
            f"{address}/clip.mp4",
            "file:///etc/passwd",
        ):
            for field in (
                {"path": str(path), "meta": FILE},
                {"path": str(path), "url": f"{address}/clip.mp4", "meta": FILE},
            ):
                assert "400 The request names a file" in call(url, field)
            # in place of labels too, which are no files
            assert "400 The request names a file" in call(url, None, labels={"path": str(path), "meta": FILE})
            assert "event: error" in call(url, str(path))
        foreign = (
            f"file={address}/clip.mp4",
            f"proxy={address}/clip.mp4",
            f"file={clips[0]}",
            "file=/etc/passwd",
            f"file={link}",
        )
        for path in (*foreign, "file=../../etc/passwd", "process_recording", "vibe-code", "run-history/records"):
            assert requests.get(f"{url}/gradio_api/{path}", timeout=30).status_code == 404, path
    link.unlink()
    for path in ("/monitoring", "/monitoring/summary", "/file=/etc/passwd", "/gradio_api/openapi.json"):
        assert requests.get(url + path, timeout=30).status_code == 404, path
    uploaded = upload(url, clips[0])
    assert requests.get(f"{url}/gradio_api/file={uploaded}", timeout=30).content == clips[0].read_bytes()


def test_bad_options(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gradio", reason="the page needs gradio")
    monkeypatch.chdir(tmp_path)
    for argv, sentence in (
        ([], "`ezclip demo"),
        (["--max_seconds", "0"], "--max_seconds must be a number above 0"),
        (["--max_size_mb", "nan"], "--max_size_mb must be a number above 0"),
        (["--server_port", "99999999"], "--server_port must be from 1 to 65535, got 99999999"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2 and sentence in capsys.readouterr().err


@pytest.mark.slow
def test_page_in_a_browser(page, clips, answers, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium (`apt-get install chromium`)")
    url, folder = page
    bad, big = tmp_path / "bad.mp4", tmp_path / "big.mp4"
    bad.write_bytes(clips[0].read_bytes()[:900])
    with open(big, "wb") as file:
        file.truncate(2 * 2**30)
    asked = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def visit():
            tab = browser.new_context().new_page()
            tab.on("request", lambda request: asked.append(request.url))
            tab.goto(url)
            tab.wait_for_selector("#classify")
            return tab

        def give(tab, path, labels=TYPED):
            tab.locator("#video input[type=file]").first.set_input_files(path)
            tab.wait_for_selector("#video video")
            tab.locator("#labels textarea").fill(labels)
            tab.locator("#classify").click()

        tabs = [visit() for _ in clips]
        for tab, path in zip(tabs, clips):
            give(tab, path)
        for tab, path, answer in zip(tabs, clips, answers):
            tab.wait_for_function("document.querySelector('#words textarea').value.length > 10")
            assert f"8 frames of {path.name}" in tab.locator("#words textarea").input_value()
            assert tab.locator("#scores h2").inner_text() == next(iter(answer))
            assert tab.locator("#timeline img").count() == tab.locator("#attention img").count() == 1
        tab = visit()
        give(tab, bad)
        tab.get_by_text("The video is cut off").wait_for()
        tab = visit()
        before = sum(path.is_file() for path in folder.rglob("*"))
        tab.locator("#video input[type=file]").first.set_input_files(big)
        tab.get_by_text("exceed the maximum allowed size").wait_for()
        assert sum(path.is_file() for path in folder.rglob("*")) == before
        browser.close()
    assert all(address.startswith((url, "data:", "blob:")) for address in asked)


def test_page_says_what_a_model_knows(tiny_folder, tmp_path):
    pytest.importorskip("gradio", reason="the page needs gradio")
    from ezclip.app.page import AppSettings, make_page

    classifier = ZeroShotVideoClassificationPipeline(
        model=load_model(tiny_folder), processor=load_processor(tiny_folder)
    )

    def shown() -> list[str]:
        page = make_page(classifier, AppSettings(), "tiny", str(tmp_path))
        parts = page.get_config_file()["components"]
        return [part["props"]["value"] for part in parts if part["props"].get("elem_id") == "scope"]

    assert shown() == []
    classifier.model.config.scope = "A toy: it knows [two](http://x) classes."
    assert shown() == [r"**A toy: it knows \[two\](http\://x) classes.**"]


def test_frames_of_a_camera():
    page_module = pytest.importorskip("ezclip.app.page", reason="the page needs gradio")
    limits = page_module.AppSettings().read_limits
    file = io.BytesIO()
    image = random_clip(0, 1)[0]
    Image.fromarray(image).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    assert (page_module.read_camera_frame({"url": url}, limits) == image).all()
    for wrong in (None, 3, {"url": "/etc/passwd"}, {"url": url[:-40]}, {"url": "data:image/png;base64,é"}):
        with pytest.raises(DataError, match="cannot be read"):
            page_module.read_camera_frame(wrong, limits)
    with pytest.raises(ValueError, match="max_pixels"):
        page_module.read_camera_frame({"url": url}, ReadLimits(max_pixels=100))


@pytest.mark.slow
def test_webcam_in_a_browser(page):
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium (`apt-get install chromium`)")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        tab = browser.new_context(permissions=["camera"]).new_page()
        tab.goto(page[0])
        tab.locator("#labels textarea").fill(TYPED)
        tab.get_by_text("Live, from the webcam").click()
        tab.locator("#camera").get_by_text("Click to Access Webcam").click()
        tab.locator("#camera").get_by_text("Record").click()
        tab.wait_for_selector("#live_scores h2")
        assert tab.locator("#live_scores h2").inner_text() in LABELS
        browser.close()
