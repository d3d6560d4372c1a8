"""
`scripts/app.py` in a browser (headless Chromium): with a pointer, with the keyboard only, and on a narrow screen; with
models of every task, unreadable files, unusable checkpoints, and without a network.

All tests share one server, which may contact this machine only (it has a Hub on localhost), and one browser. What the
page shows is compared with pipelines and models called directly.

    python -m pytest tests/scripts/test_app.py
"""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from torch.nn import functional as F
from transformers import pipeline

from pvt_hf import photo, sample
from pvt_hf.hub.upload import push

from ..support.hub_fixtures import TOKEN
from ..support.hub_kinds import ANIMALS, KINDS
from ..support.page_server import run_page


pytest_plugins = ["tests.support.hub_fixtures"]

# Runs the page, and notes with whom it wants to speak
WATCHED = """
import os, runpy, sys
log = open(sys.argv[1], "a", buffering=1)
def watch(event, arguments):
    if event not in ("socket.connect", "socket.getaddrinfo"):
        return
    address = arguments[1] if event == "socket.connect" else arguments
    host = address[0] if isinstance(address, tuple) else "localhost"  # a name in the file system
    if host not in (None, "127.0.0.1", "localhost", b"127.0.0.1", b"localhost"):
        print(event, host, file=log)
sys.addaudithook(watch)
sys.argv = sys.argv[2:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))  # as `python SCRIPT` does
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PATIENCE = 120_000  # milliseconds, for slow machines
STAGES = [f"Attention of stage {number}" for number in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Models and images."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("classifier", "semantic_fpn", "mask_rcnn", "retinanet"):
        kind = KINDS[name]
        kind.model().save_pretrained(folder / name)
        kind.make_processor().save_pretrained(folder / name)
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pixels.resize((160, 120), Image.Resampling.BICUBIC).save(folder / "photo.png")
    pixels.resize((4000, 3000), Image.Resampling.BICUBIC).save(folder / "large.jpg")
    (folder / "text.png").write_text("This is no image.")
    (folder / "cut.jpg").write_bytes((folder / "large.jpg").read_bytes()[:100_000])
    (folder / "empty.png").touch()

    (folder / "nothing").mkdir()
    shutil.copytree(folder / "classifier", folder / "pickled")
    (folder / "pickled" / "model.safetensors").unlink()
    torch.save(KINDS["classifier"].model().state_dict(), folder / "pickled" / "pytorch_model.bin")
    shutil.copytree(folder / "classifier", folder / "broken")
    (folder / "broken" / "model.safetensors").write_bytes(b"\xff" * 1000)
    shutil.copytree(folder / "classifier", folder / "deeper")
    config = json.loads((folder / "deeper" / "config.json").read_text())
    config["depths"][0] += 1
    (folder / "deeper" / "config.json").write_text(json.dumps(config))
    shutil.copytree(folder / "classifier", folder / "unprepared")
    (folder / "unprepared" / "preprocessor_config.json").unlink()
    (folder / "coded").mkdir()
    code = f"open({str(folder / 'was_run')!r}, 'w')\nfrom transformers import PreTrainedConfig as Code"
    (folder / "coded" / "code.py").write_text(code)
    config = {"model_type": "of_its_own", "auto_map": {"AutoConfig": "code.Code"}}
    (folder / "coded" / "config.json").write_text(json.dumps(config))
    KINDS["backbone"].model().save_pretrained(folder / "backbone")
    return folder


@pytest.fixture(scope="module")
def served(files, hub, client):
    """The page's address, its log, and a log of other hosts that it contacted."""
    push(KINDS["classifier"].model(), KINDS["classifier"].make_processor(), "org/pvt-tiny", token=TOKEN)
    others = files / "others.log"
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(files / "hf"), "HF_HUB_DISABLE_XET": "1"}
    model = ("--model", files / "classifier")
    with run_page(files, *model, launcher=("-c", WATCHED, others), **environment) as (url, log):
        yield url, log, others


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("These tests need Chromium: as root, `apt-get install chromium` (which `make test` does).")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, timeout=PATIENCE)
        yield browser.new_context(viewport={"width": 1280, "height": 900})


@pytest.fixture
def page(browser, served):
    """The page with the classifier. Fails if the console shows an error or the page asks another host."""
    page, faults = browser.new_page(), []
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    own = (f"{served[0]}/", "data:", f"blob:{served[0]}/")
    page.on("request", lambda request: None if request.url.startswith(own) else faults.append(request.url))
    page.goto(served[0])
    expect(status(page)).to_contain_text("image-classification, 5 classes. Now drop an image.")
    yield page
    page.close()
    assert faults == []


def status(page: Page):
    return page.locator("#status")


def load(page: Page, name: object, expected: str) -> None:
    box = page.get_by_role("textbox", name="Checkpoint")
    box.fill(str(name))
    box.press("Enter")
    expect(status(page)).to_contain_text(expected)


def upload(page: Page, file: Path) -> None:
    """Replaces the image that is shown."""
    clear = page.get_by_role("button", name="Clear")
    if clear.count():
        clear.click()
        expect(status(page)).to_contain_text("Now drop an image.")
    page.set_input_files("input[type=file]", file)
    expect(status(page)).to_contain_text(file.name)


def pictures(page: Page) -> list[str]:
    """Addresses of the attention pictures; each contains a checksum of its picture."""
    for name in STAGES:
        expect(page.get_by_alt_text(name)).to_be_visible()
    return [page.get_by_alt_text(name).get_attribute("src") for name in STAGES]


def wait_for_others(page: Page, before: list[str]) -> list[str]:
    for name, address in zip(STAGES, before):
        expect(page.get_by_alt_text(name)).not_to_have_attribute("src", address)
    return pictures(page)


def page_text(page: Page) -> str:
    return page.locator("body").inner_text()


def assert_narrow(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(500)  # until it is laid out anew
    assert page.evaluate("document.scrollingElement.scrollWidth") <= page.evaluate("innerWidth") == 390
    page.set_viewport_size({"width": 1280, "height": 900})


def test_classes_and_where_a_patch_looks(page, files):
    upload(page, files / "photo.png")
    expected = pipeline("image-classification", model=str(files / "classifier"))(str(files / "photo.png"), top_k=5)
    expect(status(page)).to_contain_text(f"{expected[0]['label']}, {expected[0]['score']:.1%}")
    shown = re.findall(rf"({'|'.join(ANIMALS.values())})\s+(\d+)%", page.locator("#classes").inner_text())
    assert [label for label, _ in shown] == [one["label"] for one in expected]
    assert all(abs(int(score) - 100 * one["score"]) <= 0.51 for (_, score), one in zip(shown, expected))

    seen, image = [pictures(page)], page.get_by_alt_text("Your image")
    image.scroll_into_view_if_needed()
    # At least 128x128 pixels, of the image's shape: 160x96, in patches of four
    for x, y, place in (
        (0.1125, 0.9, "Stage 1: row 22 of 24, column 5 of 40"),
        (0.8875, 0.1, "Stage 1: row 3 of 24, column 36 of 40"),
    ):
        box = image.bounding_box()
        image.click(position={"x": box["width"] * x, "y": box["height"] * y})
        seen.append(wait_for_others(page, seen[-1]))
        assert place in page_text(page)
        assert abs(int(page.get_by_role("slider", name="from the left").input_value()) - 100 * x) <= 1
    assert all(len({addresses[stage] for addresses in seen}) == 3 for stage in range(4))
    assert_narrow(page)


def test_segmentation_with_its_legend(page, files):
    load(page, files / "semantic_fpn", "semantic-segmentation, 6 classes")
    upload(page, files / "photo.png")
    expect(page.get_by_alt_text("The answer")).to_be_visible()
    kind, image = KINDS["semantic_fpn"], Image.open(files / "photo.png")
    with torch.no_grad():
        logits = kind.model()(kind.make_processor()(image, return_tensors="pt").pixel_values).logits
    # As large as the picture that is shown: 512 pixels wide
    labels = F.interpolate(logits, size=(384, 512), mode="bilinear", align_corners=False)[0].argmax(0)
    shares = (labels.flatten().bincount(minlength=6) / labels.numel()).tolist()
    names = kind.model().config.id2label
    expected = {names[label]: share for label, share in enumerate(shares) if share}
    shown = dict(re.findall(r"(\w+): ([\d.]+)%", page.locator("#details").inner_text()))
    assert shown.keys() == expected.keys()
    # Shown to a tenth of a percent; a pixel between two classes may fall on either side
    assert all(abs(float(shown[name]) - 100 * expected[name]) < 0.1 for name in shown)
    colors = page.locator("#details i").evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
    assert len(set(colors)) == len(shown)
    pictures(page)
    assert_narrow(page)


def test_objects(page, files):
    """Those of the detector in the package, in its own example, which is shown 2 times as large."""
    load(page, "sample:digits-detector", "instance-segmentation, 10 classes")
    page.get_by_role("slider", name="Lowest score").press("Home")
    page.get_by_role("button", name="digits", exact=True).click()
    expect(status(page)).to_contain_text("scene.png: ")
    folder = sample("digits-detector")
    detector = pipeline("object-detection", model=folder)
    found = detector(f"{folder}/scene.png", threshold=0.05)
    counts = Counter(one["label"] for one in found)
    assert len(counts) > 1
    shown = {label: int(count) for count, label in re.findall(r"(\d+) × (\w+)", status(page).inner_text())}
    assert shown == counts
    rows = page.locator("#details tr").all_inner_texts()[1:]
    assert len(rows) == min(len(found), 50)
    best = max(found, key=lambda one: one["score"])
    numbers = re.fullmatch(rf"{best['label']}\s+([\d.]+)%\s+(-?\d+), (-?\d+), (-?\d+), (-?\d+)", rows[0]).groups()
    assert abs(float(numbers[0]) - 100 * best["score"]) < 0.1
    # The pipeline answers in whole pixels of the image
    assert all(abs(int(x) / 2 - y) <= 1.2 for x, y in zip(numbers[1:], best["box"].values()))

    sure = Counter(one["label"] for one in detector(f"{folder}/scene.png", threshold=0.95))
    assert sure
    page.get_by_role("slider", name="Lowest score").press("End")
    for label, count in sure.items():
        expect(status(page)).to_contain_text(f"{count} × {label}")
    pictures(page)
    assert_narrow(page)


def test_examples_are_photographs_of_installed_packages(page, files):
    load(page, files / "retinanet", "object-detection, 6 classes")
    for name, file in (("a temple", "china.jpg"), ("a cat", "chelsea.png"), ("a temple", "china.jpg")):
        page.get_by_role("button", name=name, exact=True).click()
        expect(status(page)).to_contain_text(f"{file}: ")
        width = Image.open(photo(Path(file).stem)).width
        expect(page.get_by_alt_text("Your image")).to_have_js_property("naturalWidth", max(width, 512))
    assert "danielbuechele" in page_text(page)
    before = pictures(page)
    page.get_by_role("slider", name="from the top").press("End")  # an event that takes uploads only
    wait_for_others(page, before)


def test_files_that_are_no_images(page, files):
    for name in ("text.png", "cut.jpg", "empty.png"):
        upload(page, files / name)
        expect(status(page)).to_contain_text(f"⚠ {name} cannot be read as an image")
        assert "Traceback" not in page_text(page) and str(files) not in status(page).inner_text()
    upload(page, files / "photo.png")  # which the page still takes
    pictures(page)


def test_another_file_before_the_first_is_answered(page, files):
    page.set_input_files("input[type=file]", files / "large.jpg")
    page.get_by_role("button", name="Clear").click()
    page.set_input_files("input[type=file]", files / "text.png")
    expect(status(page)).to_contain_text("⚠ text.png cannot be read as an image")
    upload(page, files / "photo.png")


def test_checkpoints_that_are_none(page, files):
    for name, message in (
        ("", "Name a folder or a Hub id"),
        ("org/absent", "org/absent is not a local folder and is not a valid model"),
        ("not a name!", "Cannot load not a name!: Repo id must"),
        (files / "nothing", "has no config.json"),
        (files / "photo.png", "is a file"),
        (files / "pickled", "model.safetensors"),
        (files / "absent", f"There is no model folder {files / 'absent'}"),
        (files / "broken", f"The weights of {files / 'broken'} cannot be read: Error while deserializing"),
        (files / "deeper", "is not a complete PvtForImageClassification: it has no weights for"),
        (files / "unprepared", f"{files / 'unprepared'} has no preprocessor_config.json"),
        (files / "coded", "runs only if the page was started with --trust_remote_code"),
        (files / "backbone", "holds a PvtBackbone"),
    ):
        load(page, name, message)
        assert "Traceback" not in page_text(page)
    assert not (files / "was_run").exists()
    load(page, files / "classifier", "Now drop an image")


def test_a_checkpoint_of_the_hub(page, files):
    load(page, "org/pvt-tiny", "Loaded org/pvt-tiny: image-classification")
    upload(page, files / "photo.png")
    pictures(page)


def test_by_keyboard_alone(page, files):
    """Every control can be reached with Tab, shows its focus, and has a name."""
    focused = "document.activeElement"

    def tab_to(role: str, name: str) -> None:
        wanted = page.get_by_role(role, name=name, exact=name == "Load")
        for _ in range(40):
            page.keyboard.press("Tab")
            style = page.evaluate(f"getComputedStyle({focused}).outlineStyle")
            assert page.evaluate(f"{focused} === document.body") or style != "none", page.evaluate(focused)
            if wanted.evaluate(f"element => element === {focused}"):
                return
        raise AssertionError(f"no {role} {name!r} within 40 steps")

    page.on("filechooser", lambda chooser: None)  # tells the browser now that a listener will come, not at the key
    tab_to("textbox", "Checkpoint")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(str(files / "mask_rcnn"))
    tab_to("button", "Load")
    page.keyboard.press("Enter")
    expect(status(page)).to_contain_text("instance-segmentation, 6 classes")
    expect(page.get_by_role("slider", name="Lowest score")).to_be_visible()  # the page has its new shape
    tab_to("button", "Click to upload")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(files / "photo.png")
    before = pictures(page)
    tab_to("slider", "from the top")
    page.keyboard.press("End")
    before = wait_for_others(page, before)
    tab_to("slider", "from the left")
    page.keyboard.press("Home")
    wait_for_others(page, before)
    tab_to("button", "Clear")
    page.keyboard.press("Enter")
    expect(status(page)).to_contain_text("Now drop an image.")


@pytest.mark.parametrize("name", ["classifier", "mask_rcnn"])
def test_a_photograph_of_twelve_megapixels(page, files, name):
    load(page, files / name, "Now drop an image.")
    upload(page, files / "large.jpg")
    pictures(page)
    size = page.get_by_alt_text("Your image").evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert size == [1024, 768]


@pytest.mark.slow
def test_without_a_network(page, hub):
    """Slow because the Hub's client retries for 20 seconds. Must come near the end, because it stops the Hub."""
    for server in hub._servers:
        server.shutdown()
        server.server_close()
    load(page, "org/other", "Cannot load org/other: There is no model folder org/other here")


def test_it_spoke_to_nobody_and_had_no_trouble(page, served):
    _, log, others = served
    assert others.read_text() == "" and "Traceback" not in log.read_text(), log.read_text()
