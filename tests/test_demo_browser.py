"""The demo page as a visitor meets it: in a real Chromium without a window, and without any other host."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from playwright.sync_api import expect

import softcam_hub
from softcam_hub import CAPE_LESIONS
from softcam_hub.data.lesions import draw
from softcam_hub.demo import open_page
from softcam_hub.models.images import read_user_image
from softcam_hub.models.text import format_share
from tools.draw_web_page import find_chromium, launch_chromium

pytestmark = pytest.mark.slow

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
NAMES = ["healthy", "microaneurysm", "haemorrhage", "exudate"]
WAIT = 30_000


@pytest.fixture(scope="module")
def browser():
    if find_chromium() is None:
        pytest.skip("there is no Chromium: run make chromium")
    with launch_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def softcam_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("softcam") / "model"
    config = softcam_hub.SoftCAMConfig(architecture="softcam_test_resnet", id2label={0: "cat", 1: "dog"})
    softcam_hub.SoftCAMForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(softcam_folder):
    blocks = open_page([CAPE_LESIONS, softcam_folder])
    yield blocks.local_url
    blocks.close()


@pytest.fixture
def visit(browser, url):
    """Return a function that opens the page. The test fails if the browser reports an error or contacts another host."""
    pages, problems = [], []

    def open_it(viewport=DESKTOP, **options):
        context = browser.new_context(viewport=viewport, **options)
        page = context.new_page()
        pages.append(page)
        page.set_default_timeout(WAIT)
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda asked: None if local(asked.url, url) else problems.append(asked.url))
        page.goto(url)
        answered(page)
        return page

    yield open_it
    for page in pages:
        page.context.close()
    assert problems == []


def local(asked, url):
    return asked.startswith((url, "data:", "blob:"))


def answered(page):
    page.wait_for_selector("#maps figure")
    expect(page.locator("#prediction table")).to_be_visible(timeout=WAIT)


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def upload(page, file):
    page.set_input_files("#picture input[type=file]", str(file))


def choose(page, menu, option):
    page.locator(f"#{menu} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def expected(file, classes=None):
    """Explain a picture by the shipped model with the library alone."""
    model = softcam_hub.CAPEForImageClassification.from_pretrained(CAPE_LESIONS)
    config = timm.data.resolve_data_config({}, pretrained_cfg=model.pretrained_cfg)
    pixels = timm.data.create_transform(**config)(read_user_image(file).image)[None]
    return model.explain(pixels, classes, top_k=2)


@pytest.fixture
def eye(tmp_path):
    """Write a picture about which the model is in some doubt."""
    draw(3, "test", 256).image.rotate(20).resize((130, 120)).save(tmp_path / "eye.png")
    return tmp_path / "eye.png"


def test_upload_choose_slide_and_read_the_numbers(visit, eye):
    page, reference = visit(), expected(eye)
    upload(page, eye)
    for rank in (0, 1):
        name, given = NAMES[reference.classes[0, rank]], float(reference.probabilities[0, rank])
        expect(page.locator("#prediction tr").nth(rank)).to_contain_text(f"{name}{format_share(given)}", timeout=WAIT)
    open_tab(page, "Regions")
    for rank in (0, 1):
        shown = page.locator("#regions figcaption").nth(rank)
        expect(shown).to_contain_text(reference.regions(0.05).describe(rank=rank))

    page.locator("#threshold input[type=range]").fill("0.4")
    expect(page.locator("#regions figcaption").nth(0)).to_contain_text(reference.regions(0.4).describe(), timeout=WAIT)
    assert reference.regions(0.4).describe() != reference.regions(0.05).describe()

    choose(page, "second", "haemorrhage")
    other = expected(eye, [[int(reference.classes[0, 0]), 2]])
    expect(page.locator("#regions figcaption").nth(1)).to_contain_text(
        other.regions(0.4).describe(rank=1), timeout=WAIT
    )
    a, b = other.probabilities[0].tolist()
    open_tab(page, "Difference")
    total = format_share(a - b, "+")
    expect(page.locator("#difference")).to_contain_text(f"difference of the probabilities: {total}")
    choose(page, "first", "haemorrhage")
    expect(page.locator("#difference")).to_have_text("Choose two different classes to compare them.", timeout=WAIT)
    open_tab(page, "Regions")
    expect(page.locator("#regions figure")).to_have_count(1)


def test_the_frame_and_the_file_name_follow_the_picture_that_is_shown(visit, eye, tmp_path):
    page = visit()
    framed = page.locator("#examples .thumbnail-item.selected")
    expect(page.locator("#prediction figcaption")).to_contain_text("haemorrhage-1.png")
    expect(page.locator("#examples button").nth(2)).to_have_class(re.compile("selected"))
    upload(page, eye)
    expect(page.locator("#prediction figcaption")).to_contain_text("eye.png", timeout=WAIT)
    expect(framed).to_have_count(0)
    page.locator("#examples button").nth(3).click()
    expect(page.locator("#prediction figcaption")).to_contain_text("exudate-1.png", timeout=WAIT)
    expect(framed).to_have_count(1)

    # A bad upload leaves picture, frame and layout as they are.
    page.wait_for_timeout(500)
    before = page.locator("#prediction").inner_html(), page.locator("#maps").bounding_box()
    (tmp_path / "diary.png").write_text("dear diary")
    upload(page, tmp_path / "diary.png")
    expect(page.locator("#notice")).to_contain_text("diary.png cannot be read", timeout=WAIT)
    assert (page.locator("#prediction").inner_html(), page.locator("#maps").bounding_box()) == before
    expect(page.locator("#examples button").nth(3)).to_have_class(re.compile("selected"))


def test_opacity_and_downloads(visit):
    page = visit()
    layer = page.locator("#maps .layer").first
    opacity = "element => getComputedStyle(element).opacity"
    assert layer.evaluate(opacity) == "0.75"
    page.locator("#opacity input[type=range]").fill("30")
    expect(layer).to_have_css("opacity", "0.3", timeout=WAIT)
    for name in ("haemorrhage-1-explained.png", "haemorrhage-1-explained.json"):
        with page.expect_download() as download:
            page.locator(f"a[download='{name}']").click()
        assert download.value.suggested_filename == name
        assert download.value.path().stat().st_size > 1000


def test_an_example_and_another_model(visit, softcam_folder):
    page = visit()
    page.locator("#examples button").nth(3).click()
    expect(page.locator("#prediction tr").first).to_contain_text("exudate", timeout=WAIT)
    open_tab(page, "Post-hoc")
    expect(page.locator("#post_hoc")).to_contain_text("explain this same model, through its gradients, which gives it")
    open_tab(page, "Maps")
    choose(page, "model", str(softcam_folder))
    expect(page.locator("#maps h3")).to_have_text(["SoftCAM"], timeout=WAIT)
    expect(page.get_by_role("tab", name="Regions")).to_have_count(0)
    expect(page.locator("#training")).to_contain_text("trained to tell apart cat, dog.")
    open_tab(page, "Difference")
    expect(page.locator("#difference")).to_contain_text("is the difference of the logits")
    open_tab(page, "Post-hoc")
    expect(page.locator("#post_hoc")).to_contain_text("explain the vanilla classifier of this model")
    open_tab(page, "Maps")
    choose(page, "model", "cape_lesions")
    expect(page.locator("#maps h3")).to_have_text(["CAPE", "μ-CAPE"], timeout=WAIT)
    open_tab(page, "Regions")
    expect(page.locator("#threshold")).to_be_visible()


def test_a_choice_made_while_an_answer_is_on_its_way_is_answered_too(visit, softcam_folder):
    page = visit()
    choose(page, "model", str(softcam_folder))
    choose(page, "model", "cape_lesions")
    expect(page.locator("#maps h3")).to_have_text(["CAPE", "μ-CAPE"], timeout=WAIT)
    page.wait_for_timeout(1000)
    choose(page, "model", str(softcam_folder))
    expect(page.locator("#maps h3")).to_have_text(["SoftCAM"], timeout=WAIT)
    choose(page, "model", "cape_lesions")
    choose(page, "model", str(softcam_folder))
    choose(page, "model", "cape_lesions")
    page.wait_for_timeout(3000)
    expect(page.locator("#maps h3")).to_have_text(["CAPE", "μ-CAPE"], timeout=WAIT)


def test_an_example_chosen_while_another_is_explained_is_explained_too(visit):
    page = visit()
    for example in (4, 5, 3):
        page.locator("#examples button").nth(example).click()
    expect(page.locator("#prediction figcaption")).to_contain_text("exudate-1.png", timeout=WAIT)
    page.wait_for_timeout(3000)
    expect(page.locator("#prediction figcaption")).to_contain_text("exudate-1.png")


def make(folder):
    """Write unusual files, and return the sentence that the page shows for each, empty for readable files."""
    image = draw(3, "test", 256).image
    image.save(folder / "whole.png")
    (folder / "truncated.png").write_bytes((folder / "whole.png").read_bytes()[:20_000])
    (folder / "fat.png").write_bytes((folder / "whole.png").read_bytes() + bytes(20 * 2**20))
    (folder / "text.png").write_text("dear diary")
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    image.save(folder / "moving.gif", save_all=True, append_images=[image.rotate(90), image.rotate(180)])
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    return {
        "truncated.png": "truncated.png cannot be read: image file is truncated",
        "fat.png": "fat.png cannot be read: the file has more than 20 MB",
        "text.png": "text.png cannot be read: it is not an image",
        "huge.png": "huge.png cannot be read: it has 10000×10000 = 100 million pixels",
        "moving.gif": "moving.gif has 3 pictures, and this is the first of them.",
        "cmyk.jpg": "",
        "alpha.png": "",
        "deep.png": "",
    }


def test_unusual_uploads_are_read_or_refused_with_a_sentence(visit, tmp_path):
    page = visit()
    for name, sentence in make(tmp_path).items():
        upload(page, tmp_path / name)
        readable = "cannot be read" not in sentence
        expect(page.locator("#notice")).to_contain_text(sentence, timeout=WAIT)
        expect(page.locator("#prediction table")).to_have_count(1, timeout=WAIT)
        if readable:
            expect(page.locator("#notice")).to_have_text(re.compile(f"^\\s*{re.escape(sentence)}\\s*$"), timeout=WAIT)
            reference = expected(tmp_path / name)
            best = f"{NAMES[reference.classes[0, 0]]}{format_share(float(reference.probabilities[0, 0]))}"
            expect(page.locator("#prediction tr").first).to_contain_text(best, timeout=WAIT)
        assert page.locator(".toast-body").count() == 0


def test_a_text_file_is_refused_with_a_sentence(visit, tmp_path):
    (tmp_path / "diary.txt").write_text("dear diary")
    page = visit()
    upload(page, tmp_path / "diary.txt")
    expect(page.locator(".toast-body")).to_contain_text(
        "Invalid file type: diary.txt. Only image allowed.", timeout=WAIT
    )


def overlapping(page):
    """Return the ids of the controls that reach beyond the screen or are too small for a finger."""
    script = """() => ["picture", "examples", "model", "first", "second", "opacity"].filter(id => {
        const box = document.getElementById(id).getBoundingClientRect();
        return box.left < 0 || box.right > innerWidth || box.height < 40 || box.width < 150;
    })"""
    return page.evaluate(script)


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_fits_the_screen(visit, viewport, tmp_path):
    page = visit(viewport, has_touch=viewport is PHONE, is_mobile=viewport is PHONE)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= viewport["width"]
    assert overlapping(page) == []
    assert page.evaluate("document.documentElement.scrollHeight") < 2400
    for picture in page.locator("#prediction img, #maps img, #post_hoc img").all():
        box = picture.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= viewport["width"]
        assert box["width"] >= 120
    folder = Path(os.environ.get("DEMO_SCREENSHOTS", tmp_path))
    page.screenshot(path=folder / f"demo_{viewport['width']}.png", full_page=True)
    open_tab(page, "Regions")
    slider = page.locator("#threshold input[type=range]")
    expect(slider).to_be_visible(timeout=WAIT)
    slider.press("ArrowRight")
    expect(page.locator("#threshold input[type=number]")).to_have_value("0.06", timeout=WAIT)


def test_the_page_needs_no_other_host(visit):
    """All content comes from the host of the page, also the fonts: `visit` checks that."""
    fonts = visit().evaluate("[...document.fonts].filter(font => font.status == 'loaded').map(font => font.family)")
    assert fonts == []
