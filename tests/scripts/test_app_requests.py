"""
`scripts/app.py` as a hostile visitor meets it, over HTTP: files of the server, other addresses of Gradio, names of
models, odd requests; and answers that are not finite.

    python -m pytest tests/scripts/test_app_requests.py
"""

import io
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTImageProcessor

from ..support.clean_process import REPOSITORY
from ..support.hub_kinds import KINDS
from ..support.page_server import SCRIPT, PageClient, answer_text, file_data, run_page


REFUSED = "This file was not uploaded here."
ODD = "The page did not understand this request."


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    for name in ("classifier", "mask_rcnn"):
        KINDS[name].model().save_pretrained(root / name)
        KINDS[name].make_processor().save_pretrained(root / name)
    shutil.copytree(root / "classifier", root / "broken")
    weights = load_file(root / "broken" / "model.safetensors")
    weights["classifier.bias"][0] = math.nan
    save_file(weights, root / "broken" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(root / "classifier", root / "overflowing")
    weights["classifier.bias"].zero_(), weights["classifier.weight"].fill_(3e38)
    save_file(weights, root / "overflowing" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(root / "classifier", root / "unscaled")
    ViTImageProcessor(size={"height": 64, "width": 64}, image_std=[0.0] * 3).save_pretrained(root / "unscaled")
    (root / "private.png").write_bytes(picture(1))
    return root


# Variables that once decided where Gradio listens and which files it gives out
ENVIRONMENT = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_ALLOWED_PATHS": "/", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def page(folder):
    """The address and the log of a page for this machine."""
    with run_page(folder, "--model", "classifier", **ENVIRONMENT) as started:
        yield started


@pytest.fixture
def visitor(page):
    """A visitor who has opened the page. Fails if its log shows a traceback."""
    url, log = page
    visitor = PageClient(url)
    assert "5 classes. Now drop an image." in answer_text(visitor.send("load", ["", None, 0.5, 50, 50]))
    yield visitor
    assert "Traceback" not in log.read_text() and " ERROR" not in log.read_text(), log.read_text()


def test_files_of_the_server_are_refused_whether_or_not_they_exist(visitor, folder):
    uploaded = visitor.upload("photo.png", picture(0))
    assert visitor.show(file_data(uploaded)).startswith("photo.png: ")
    uploads = Path(uploaded).parents[1]
    (uploads / "link.png").symlink_to(folder / "private.png")
    (uploads / "linked").symlink_to(folder)
    relative = os.path.relpath(folder / "private.png", uploads)
    for path in (
        folder / "private.png", folder / "absent.png", f"{uploads}/{relative}", uploads / "link.png",
        uploads / "linked" / "private.png", uploads, uploads / "absent.png", "private.png", "/etc/passwd", "/", "", ".",
        f"file://{folder}/private.png", "http://127.0.0.1:9/private.png", "\0", f"{folder}/private.png\0", "a" * 10_000,
        5, None, [], {"path": str(folder / "private.png")},
    ):  # fmt: skip
        assert visitor.show(file_data(str(path) if isinstance(path, Path) else path)) == REFUSED, path
    private = (folder / "private.png").read_bytes()
    assert all(file.read_bytes() != private for file in uploads.rglob("*") if file.is_file() and not file.is_symlink())


@pytest.mark.parametrize("name", ["private.png", "absent.png"])
def test_every_event_and_every_input_refuses_them(visitor, folder, name):
    good, bad = file_data(visitor.upload("photo.png", picture(0))), file_data(str(folder / name))
    place = [0.5, 50, 50]
    for answer in (
        visitor.send("load", ["", bad, *place]),
        visitor.send("click", ["classifier", bad, *place]),
        visitor.send("submit", ["classifier", bad, *place]),
        visitor.send("upload", [None, bad, *place]),
        visitor.send("upload", [None, {**bad, "is_stream": True, "url": good["path"]}, *place]),
        visitor.send("upload", [None, {"path": bad["path"]}, *place]),  # without the mark of a file
        visitor.send("upload", [None, [bad], *place]),
        visitor.send("upload", [None, good, bad, 50, 50]),
        visitor.send("upload", [bad, good, *place]),
        visitor.send("select", [None, bad], event_data={"index": [1, 1]}),
        visitor.send("select", [None, good], event_data={"index": [1, 1], "value": [bad]}),
        visitor.send("input", [None, bad, 50, 50]),
    ):
        assert answer_text(answer) == REFUSED
    assert visitor.show(bad["path"]) == ODD


def test_downloads(visitor, folder):
    uploaded = visitor.upload("photo.png", picture(0))
    uploads = Path(uploaded).parents[1]
    (uploads / "other.png").symlink_to(folder / "private.png")
    assert visitor.http.get(f"/gradio_api/file={uploaded}").content == picture(0)
    relative = os.path.relpath(folder / "private.png", uploads)
    answers = set()
    for path in (
        folder / "private.png", folder / "absent.png", uploads / "other.png", f"{uploads}/{relative}", uploads,
        "http://127.0.0.1:9/", f"{folder}/../../etc/passwd", "private.png", "", "%2e%2e/private.png",
    ):  # fmt: skip
        answer = visitor.http.get(f"/gradio_api/file={path}")
        answers.add((answer.status_code, answer.text))
    assert answers == {(404, "Not found")}


@pytest.mark.parametrize(
    "path",
    ["proxy=http://127.0.0.1:9/", "file/etc/passwd", "info", "openapi.json", "deep_link", "call/answer", "run/predict",
     "api/predict", "component_server", "process_recording", "stream/x", "vibe-edit", "queue/status", "runs",
     "custom_component/gradio.components.file.File/server/component/style.css", "profiling/traces", "dev/reload"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_addresses_of_gradio(page, method, path):
    answer = httpx.request(method, f"{page[0]}/gradio_api/{path}", json={"data": []} if method == "POST" else None)
    assert (answer.status_code, answer.text) == (404, "Not found")


def test_odd_events(visitor):
    photo = file_data(visitor.upload("photo.png", picture(0)))
    for trigger, data in (
        ("upload", []), ("upload", [None] * 3), ("upload", [None] * 9), ("upload", [None, photo, "x", 50, 50]),
        ("upload", [None, photo, 0.5, {}, []]), ("upload", [None, 5, 0.5, 50, 50]), ("input", [None, None, 5, 5]),
        ("select", [None, photo]), ("click", [None, None, 0.5, 50, 50]),
    ):  # fmt: skip
        assert answer_text(visitor.send(trigger, data)) == ODD, (trigger, data)
    for event_data in (None, 5, {}, {"index": None}, {"index": "x"}, {"index": [1]}, {"index": [[], {}]}):
        assert answer_text(visitor.send("select", [None, photo], event_data=event_data)) == ODD, event_data
    assert "maximum value 100" in answer_text(visitor.send("input", [None, photo, 1e300, 50]))
    nested: list = []
    for _ in range(900):
        nested = [nested]
    assert answer_text(visitor.send("upload", [None, nested, 0.5, 50, 50])) == ODD
    assert visitor.show(photo).startswith("photo.png: ")  # it still answers


def test_odd_bodies(visitor):
    join, http = "/gradio_api/queue/join", visitor.http
    for content in (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 9000, b'{"data": [NaN]}', b'{"data": 5}',
                    b'{"data": [], "session_hash": 5}', b'{"data": [], "fn_index": 1}'):  # fmt: skip
        answer = http.post(join, content=content, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), content
    for number in (99, -1, None, "x", 1e30):
        answer = http.post(join, json={"data": [None] * 5, "fn_index": number, "session_hash": visitor.session})
        assert answer.status_code in (400, 422), number
    answer = http.get("/gradio_api/queue/data", params={"session_hash": "nobody"})
    assert answer.status_code == 200 and "unexpected_error" in answer.text
    for kind in ("multipart/form-data", "multipart/form-data; boundary=y", "text/plain"):
        answer = http.post("/gradio_api/upload", content=b"x", headers={"content-type": kind})
        assert answer.status_code == 400, kind
    assert http.post("/gradio_api/upload", files={"files": ("", b"x")}).status_code == 400
    for name in ("../../name.png", "/etc/name.png", "x" * 300 + ".png", "<b>.png"):
        path = visitor.upload(name, picture(0))
        assert Path(path).parent == Path(visitor.upload("photo.png", picture(0))).parent
        assert "%" in visitor.show(file_data(path))


def listens_elsewhere(url: str) -> bool:
    """Linux has a whole network of loopback addresses; who listens everywhere listens at all of them."""
    with socket.socket() as there:
        return there.connect_ex(("127.0.0.2", int(url.rpartition(":")[2]))) == 0


def test_it_listens_to_this_machine_only(page, visitor):
    assert not listens_elsewhere(page[0])
    # A tunnel or a proxy before the page, or a web site that has redirected its own name to this machine
    for host, status in (("page.example", 403), ("127.0.0.1.example", 403), ("localhost:80", 200), ("[::1]", 200)):
        assert visitor.http.get("/", headers={"host": host}).status_code == status, host
    # One that names this machine as the host, as nginx does
    for name, value, status in (
        ("x-forwarded-host", "page.example", 403), ("x-forwarded-for", "203.0.113.9", 403),
        ("x-forwarded-for", "127.0.0.1, 203.0.113.9:80", 403), ("x-real-ip", "2001:db8::1", 403),
        ("x-forwarded-host", "localhost:80", 200),
        ("x-forwarded-for", "::1, 127.0.0.1:5", 200), ("x-forwarded-for", "", 200),
    ):  # fmt: skip
        assert visitor.http.get("/", headers={name: value}).status_code == status, (name, value)
    for origin, status in (
        ("https://page.example", 403),
        ("null", 403),
        ("http://[x", 403),
        (page[0], 200),
    ):  # a script of a web site
        answer = visitor.http.post("/gradio_api/upload", files={"files": ("x", b"x")}, headers={"origin": origin})
        assert answer.status_code == status, origin


def test_a_public_page_offers_its_own_models_only(folder):
    models = ("--model", "classifier", "--model", "mask_rcnn")
    with run_page(folder, "--host", "0.0.0.0", *models, **ENVIRONMENT) as (url, log):
        assert listens_elsewhere(url) and httpx.get(url, headers={"host": "page.example"}).status_code == 200
        visitor = PageClient(url)
        choices = [one["props"]["choices"] for one in visitor.config["components"] if one["type"] == "dropdown"]
        assert choices == [[["classifier", "classifier"], ["mask_rcnn", "mask_rcnn"]]]
        assert "5 classes" in answer_text(visitor.send("load", ["classifier", None, 0.5, 50, 50]))
        assert "instance-segmentation" in visitor.open("mask_rcnn")
        names = ("broken", "absent", str(folder / "classifier"), "/etc", "/absent", "~", "org/absent", "./classifier")
        answers = {visitor.open(name).replace(name, "NAME") for name in names}
        assert answers == {"Value: NAME is not in the list of choices: ['classifier', 'mask_rcnn']"}
        uploaded = Path(visitor.upload("photo.png", picture(0)))
        assert uploaded.is_file() and oct(uploaded.parents[1].stat().st_mode)[-3:] == "700"  # its user's only
        assert visitor.show(file_data(str(folder / "private.png"))) == REFUSED
    assert not uploaded.parents[1].exists()
    assert "Everybody who reaches this address can use: classifier, mask_rcnn" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_public_page_needs_models(tmp_path):
    command = [sys.executable, SCRIPT, "--host", "0.0.0.0"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and "offers the checkpoints of --model only: give at least one" in result.stderr


def test_answers_that_are_not_finite(visitor):
    photo = file_data(visitor.upload("photo.png", picture(0)))
    assert "have values that are NaN or infinite: &#x27;classifier.bias&#x27;" in visitor.open("broken")
    for model, words in (("overflowing", "logits are NaN or infinite"), ("unscaled", "gives pixels that are NaN")):
        assert "Now drop an image" in visitor.open(model)
        assert words in visitor.show(photo) and "⚠" in visitor.show(photo)


def test_a_small_file_of_a_huge_image(visitor):
    buffer = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 30_000
    assert "at most 89,478,485 pixels" in visitor.show(file_data(visitor.upload("huge.png", buffer.getvalue())))
