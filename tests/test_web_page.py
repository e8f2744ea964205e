"""The page that explains pictures in the browser: its folder, and a real Chromium that opens it without any other host."""

import base64
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from playwright.sync_api import expect

from softcam_hub import CAPE_LESIONS
from softcam_hub.cli import main
from softcam_hub.data.lesions import draw
from softcam_hub.hub.publishing import PAGE_FILES, PAGE_MARK, space_files
from softcam_hub.loading import load_classifier
from softcam_hub.models.text import format_share
from softcam_hub.web.page import PUBLIC_RUNTIME, RUNTIME_FILES, export_web, page_settings, render_page
from tools import draw_web_page as drawing, fetch_runtime as fetching
from tools.draw_web_page import DESKTOP, PHONE, WAIT, find_chromium, launch_chromium, serve_folder


def small_model(family="softcam", **cfg):
    torch.manual_seed(0)
    return timm.create_model(f"{family}_test_resnet", num_classes=4, pretrained_cfg_overlay=cfg).eval()


@pytest.fixture(scope="module")
def runtime():
    """Fetch the runtime. Without a network the tests of the page are skipped, and `make test-all` does not begin."""
    try:
        return fetching.fetch_runtime()
    except HTTPError:  # the registry answers, and does not have what it should
        raise
    except URLError as error:
        pytest.skip(f"the npm registry cannot be reached: {error}")


@pytest.fixture(scope="module")
def browser():
    if find_chromium() is None:
        pytest.skip("there is no Chromium: run make chromium")
    with launch_chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser):
    """Return a function that opens a folder as a page. The test fails if another host is asked, or a script fails."""
    pages, problems = [], []

    def open_it(folder, viewport=PHONE):
        url = servers.enter_context(serve_folder(folder))
        page = browser.new_context(viewport=viewport).new_page()
        pages.append(page)
        page.set_default_timeout(WAIT)
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda asked: problems.append(asked.url) if not asked.url.startswith((url, "data:", "blob:")) else None,
        )
        page.goto(f"{url}/index.html")
        expect(page.locator("#status")).to_have_text("The model is ready.", timeout=WAIT)
        return page

    with ExitStack() as servers:
        yield open_it
        for page in pages:
            page.context.close()
    assert problems == []


def explained(page, file):
    """Let the page explain a file, and return its numbers."""
    content = base64.b64encode(Path(file).read_bytes()).decode()
    code = """async ([content, name]) => {
        const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
        const { classes, image } = await explainFile(new File([bytes], name));
        return { classes, pixels: Array.from(image.data) };
    }"""
    return page.evaluate(code, [content, Path(file).name])


def check_equal(numbers, model, file):
    """Check the numbers of the page against those of the library."""
    explanation = model.explain(str(file), top_k=3)
    pixels = explanation.pixels[0].permute(1, 2, 0).flatten().int().numpy()
    assert np.array_equal(numbers["pixels"], pixels)
    for rank, one in enumerate(numbers["classes"]):
        assert one["label"] == model.labels[explanation.classes[0, rank]]
        assert one["probability"] == pytest.approx(float(explanation.probabilities[0, rank]), abs=1e-3)
        maps = explanation.maps[0, rank].flatten()
        assert np.abs(np.array(one["map"]) - maps.numpy()).max() < 1e-3 * float(maps.abs().max())


@pytest.fixture(scope="module")
def lesions_page(tmp_path_factory, runtime):
    return export_web(load_classifier(CAPE_LESIONS).model, tmp_path_factory.mktemp("web") / "page", runtime)


@pytest.mark.slow
def test_choose_a_picture_slide_and_read_the_numbers(visit, lesions_page, tmp_path):
    file, model = tmp_path / "eye.png", load_classifier(CAPE_LESIONS).model
    draw(3, "test", 256).image.rotate(20).resize((130, 120)).save(file)
    page, explanation = visit(lesions_page), model.explain(str(file), top_k=3)

    page.set_input_files("#file", str(file))

    captions = page.locator("#tiles figcaption")
    for rank in range(3):
        label = model.labels[explanation.classes[0, rank]]
        expect(captions.nth(rank)).to_contain_text(f"{label}{format_share(float(explanation.probabilities[0, rank]))}")
        expect(captions.nth(rank)).to_contain_text(explanation.regions(0.05).describe(rank=rank))
    label, share = model.labels[explanation.classes[0, 0]], format_share(float(explanation.probabilities[0, 0]))
    expect(page.locator("#status")).to_have_text(f"The most probable class is {label}, with {share}.")
    page.locator("#threshold").fill("0.4")
    expect(captions.nth(0)).to_contain_text(explanation.regions(0.4).describe())
    assert explanation.regions(0.4).describe() != explanation.regions(0.05).describe()
    expect(page.locator("#time")).to_contain_text("ms in the model")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    check_equal(explained(page, file), model, file)


@pytest.mark.slow
def test_a_bad_file_gets_a_sentence_and_the_next_picture_an_explanation(visit, lesions_page, tmp_path):
    page = visit(lesions_page)
    (tmp_path / "notes.png").write_text("no picture")
    draw(0, "test", 128).image.save(tmp_path / "eye.png")

    page.set_input_files("#file", str(tmp_path / "notes.png"))
    expect(page.locator("#notice")).to_have_text(
        "notes.png is not a picture that this browser can read: choose a PNG, JPEG or WebP file."
    )
    expect(page.locator("#result")).to_be_hidden()

    page.set_input_files("#file", str(tmp_path / "eye.png"))
    expect(page.locator("#tiles figure")).to_have_count(3)
    expect(page.locator("#notice")).to_be_hidden()


def hand_over(page, file, way):
    """Drop a file on an element of the page, or paste it, and check that the browser itself does nothing with it."""
    content = base64.b64encode(Path(file).read_bytes()).decode()
    code = """([content, name, way]) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
        transfer.items.add(new File(["no picture"], "notes.txt", { type: "text/plain" }));
        transfer.items.add(new File([bytes], name, { type: "image/png" }));
        const options = { bubbles: true, cancelable: true };
        if (way === "paste") {
            return document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, ...options }));
        }
        const drag = (kind) => new DragEvent(kind, { dataTransfer: transfer, ...options });
        const send = (kind) => document.querySelector(way).dispatchEvent(drag(kind));
        const isLit = () => document.getElementById("drop").classList.contains("over");
        return [send("dragover"), isLit(), send("drop"), isLit()];
    }"""
    answer = page.evaluate(code, [content, Path(file).name, way])
    # A browser shows a dropped picture in place of the page unless both events are cancelled.
    assert answer == (True if way == "paste" else [False, True, False, False])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["#drop", "h1", "paste"])
def test_a_picture_that_is_dropped_or_pasted_is_explained(way, visit, lesions_page, tmp_path):
    file, model = tmp_path / "eye.png", load_classifier(CAPE_LESIONS).model
    draw(3, "test", 160).image.save(file)
    page, explanation = visit(lesions_page, DESKTOP), model.explain(str(file), top_k=3)

    hand_over(page, file, way)

    share = format_share(float(explanation.probabilities[0, 0]))
    sentence = f"The most probable class is {explanation.labels[0][0]}, with {share}."
    expect(page.locator("#status")).to_have_text(sentence)
    figures = page.locator("#tiles figure")
    expect(figures).to_have_count(3)
    for rank in range(3):
        expect(figures.nth(rank)).to_contain_text(explanation.regions(0.05).describe(rank=rank))
    expect(page.locator("#time")).to_contain_text("eye.png: ")
    coloured = """(canvas) => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return data.some((_, i) => i % 4 === 0 && data[i] > data[i + 2] + 50);
    }"""
    assert page.locator("#tiles canvas").first.evaluate(coloured)  # the picture is grey, and its evidence orange
    check_equal(explained(page, file), model, file)


@pytest.mark.slow
def test_a_text_that_is_dropped_or_pasted_gets_a_sentence_and_spares_the_explanation(visit, lesions_page, tmp_path):
    page, file = visit(lesions_page), tmp_path / "eye.png"
    draw(3, "test", 128).image.save(file)
    page.set_input_files("#file", str(file))
    expect(page.locator("#tiles figure")).to_have_count(3)
    send = """(kind) => {
        const transfer = new DataTransfer();
        transfer.setData("text/plain", "eye.png");
        const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true })
            : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
        document.body.dispatchEvent(event);
    }"""

    sentences = {"drop": "This was no file", "paste": "The clipboard holds no picture"}
    for kind, sentence in sentences.items():
        page.evaluate(send, kind)
        expect(page.locator("#notice")).to_contain_text(sentence)
        expect(page.locator("#tiles figure").first).to_be_visible()

    page.set_input_files("#file", str(file))
    expect(page.locator("#notice")).to_be_hidden()


@pytest.mark.slow
def test_the_pictures_of_the_documentation_are_drawn_by_their_command(browser, lesions_page):
    pictures = drawing.draw_web_page(browser, lesions_page)
    for drawn, path in zip(pictures, (drawing.PICTURE, drawing.PHONE_PICTURE), strict=True):
        kept = Image.open(path).convert("RGB")
        assert drawn.width == kept.width
        assert drawn.height == pytest.approx(kept.height, rel=0.1)  # another font has other lines
        if drawn.size == kept.size:  # the same font, and another time in milliseconds
            assert np.abs(np.asarray(drawn).astype(int) - np.asarray(kept)).mean() < 1
        assert path.stat().st_size < 200_000


PREPARED = {
    "bicubic, a wide crop": {"interpolation": "bicubic", "crop_pct": 0.5, "input_size": (3, 65, 65)},
    "lanczos, squashed": {
        "interpolation": "lanczos",
        "crop_mode": "squash",
        "crop_pct": 1.0,
        "input_size": (3, 64, 96),
    },
    "box, enlarged": {"interpolation": "box", "crop_pct": 0.9, "input_size": (3, 160, 160)},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PREPARED)
def test_pictures_are_prepared_as_pillow_does(case, visit, runtime, tmp_path):
    model = small_model(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), **PREPARED[case])
    page = visit(export_web(model, tmp_path / "page", runtime))
    noise = np.random.default_rng(0).integers(0, 255, (97, 143, 4), dtype=np.uint8)
    colours = Image.fromarray(noise[..., :3])
    turned = Image.Exif()
    turned[274] = 6  # a phone that was held upright
    pictures = {"colour": colours, "grey": colours.convert("L"), "palette": colours.quantize(40)}
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
    colours.save(tmp_path / "turned.png", exif=turned)

    for name in [*pictures, "turned"]:
        check_equal(explained(page, tmp_path / f"{name}.png"), model, tmp_path / f"{name}.png")


@pytest.mark.slow
def test_eight_bits_and_several_labels(visit, runtime, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("softcam_test_resnet", num_classes=4, multi_label=True).eval()
    page = visit(export_web(model, tmp_path / "page", runtime, precision="int8"))
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (160, 160, 3), dtype=np.uint8)).save(tmp_path / "a.png")

    numbers = explained(page, tmp_path / "a.png")

    explanation = model.explain(str(tmp_path / "a.png"), top_k=4)
    expected = dict(zip(explanation.classes[0].tolist(), explanation.probabilities[0].tolist(), strict=True))
    assert len(numbers["classes"]) == 3
    for one in numbers["classes"]:
        assert one["probability"] == pytest.approx(expected[model.labels.index(one["label"])], abs=0.03)


@pytest.fixture(scope="module")
def steel_page(tmp_path_factory):
    """A page without a runtime of its own. Do not change it."""
    return export_web(small_model(), tmp_path_factory.mktemp("steel") / "page", title='Steel:\n  <1> "new"\n')


@pytest.mark.slow
def test_the_folder_has_a_page_that_pushes_as_a_static_space(steel_page, tmp_path):
    files = space_files(str(steel_page), "you/steel")

    assert sorted(files) == ["README.md", "explain.js", "index.html", "model.onnx"]
    _, front_matter, _ = (steel_page / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(front_matter)
    assert metadata["sdk"] == "static"
    assert metadata["title"] == 'Steel: <1> "new"'
    page = (steel_page / "index.html").read_text()
    assert "<h1>Steel: &lt;1&gt; &quot;new&quot;</h1>" in page
    assert PUBLIC_RUNTIME in page
    with pytest.raises(ValueError, match="expected scores, demo, or a folder that export --format web wrote"):
        space_files(str(tmp_path), "you/steel")


@pytest.mark.slow
def test_earlier_pages_and_files_of_others_are_kept(steel_page, tmp_path):
    folder, model = tmp_path / "page", small_model()
    folder.mkdir()
    (folder / "index.html").write_text("my own page")
    with pytest.raises(FileExistsError):
        export_web(model, folder, overwrite=True)
    assert (folder / "index.html").read_text() == "my own page"

    shutil.copytree(steel_page, folder, dirs_exist_ok=True)
    (folder / "runtime").mkdir()
    (folder / "runtime" / "notes.txt").write_text("mine")
    export_web(model, folder, overwrite=True)
    before = (folder / "model.onnx").read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite"):
        export_web(model, folder)
    model.num_classes = 0
    with pytest.raises(ValueError, match="needs classes"):
        export_web(model, folder, overwrite=True)
    assert (folder / "model.onnx").read_bytes() == before
    assert (folder / "runtime" / "notes.txt").read_text() == "mine"
    assert not [name for name in os.listdir(tmp_path) if name != "page"]


@pytest.mark.slow
def test_a_page_is_replaced_in_the_current_folder_with_its_own_runtime(tmp_path, monkeypatch):
    (tmp_path / "source").mkdir()
    for name in RUNTIME_FILES:
        (tmp_path / "source" / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    export_web(small_model(), tmp_path / "page", runtime="source")
    monkeypatch.chdir(tmp_path / "page")

    export_web(small_model(), ".", runtime="runtime", overwrite=True)

    assert sorted(name for name in os.listdir() if not name.startswith(".")) == [
        *("README.md", "explain.js", "index.html", "model.onnx", "runtime")
    ]
    assert all((tmp_path / "page" / "runtime" / name).read_text() == name for name in RUNTIME_FILES)


def test_a_push_takes_the_files_of_the_page_alone(tmp_path):
    for name in ("index.html", "model.onnx", "patient.dcm", ".venv/secret.txt", "runtime/ort.wasm.min.mjs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(PAGE_MARK)
    assert list(space_files(str(tmp_path), "you/steel")) == ["index.html", "model.onnx", "runtime/ort.wasm.min.mjs"]
    assert {f"runtime/{name}" for name in RUNTIME_FILES} < set(PAGE_FILES)


@pytest.mark.parametrize(("mean", "expected"), [((0.4,), [0.4] * 3), ((0.1, 0.2, 0.3), [0.1, 0.2, 0.3])])
def test_one_mean_serves_all_channels(mean, expected):
    assert page_settings(small_model(mean=mean), "./runtime.mjs")["mean"] == expected


@pytest.mark.slow
def test_a_page_from_a_disk_and_a_very_long_picture_get_a_sentence(visit, browser, lesions_page, tmp_path):
    page = browser.new_page()
    page.goto((lesions_page / "index.html").as_uri())
    expect(page.locator("#notice")).to_have_text(
        "This page must be opened through a web server, such as: python -m http.server", timeout=WAIT
    )
    page.close()
    Image.new("RGB", (5000, 20), "red").save(tmp_path / "long.png")
    page = visit(lesions_page)
    page.set_input_files("#file", str(tmp_path / "long.png"))
    expect(page.locator("#notice")).to_contain_text("at most 20 times the shorter one: crop it")


@pytest.mark.slow
def test_the_command_writes_a_page_with_the_runtime(tmp_path, runtime, capsys):
    options = ["export", "--model", str(CAPE_LESIONS), "--output", str(tmp_path / "page"), "--format", "web"]
    main([*options, "--runtime", str(runtime)])
    assert sorted(os.listdir(tmp_path / "page" / "runtime")) == sorted(RUNTIME_FILES)
    assert "python -m http.server" in capsys.readouterr().out


def test_the_command_takes_the_runtime_for_pages_only(tmp_path, capsys):
    options = ["export", "--model", str(CAPE_LESIONS), "--output", str(tmp_path / "model.onnx")]
    assert main([*options, "--runtime", str(tmp_path)]) != 0
    assert "--runtime belongs to --format web" in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["nothing", "another file"])
def test_a_runtime_that_cannot_be_fetched_ends_with_a_sentence(answer, tmp_path, monkeypatch):
    (tmp_path / "registry").mkdir()
    if answer == "another file":
        (tmp_path / "registry" / "package.tgz").write_bytes(b"another file")
    monkeypatch.setattr(fetching, "FOLDER", tmp_path / "runtime")
    with serve_folder(tmp_path / "registry") as url:
        monkeypatch.setattr(fetching, "ADDRESS", f"{url}/package.tgz")
        reason = "HTTP Error 404" if answer == "nothing" else "has the checksum"
        with pytest.raises(SystemExit, match=rf"cannot be fetched from {url}/package.tgz: .*{reason}(.|\n)*make test"):
            fetching.main()
    assert not (tmp_path / "runtime").exists()


def test_class_names_cannot_leave_the_settings():
    settings = page_settings(small_model(), "./runtime.mjs") | {"labels": ["</script><script>alert(1)</script>"]}
    page = render_page(settings, "title")
    content = page.split('id="settings">')[1].split("</script>")[0]
    assert json.loads(content)["labels"] == settings["labels"]


REFUSED = {
    "another crop": ({"crop_mode": "border"}, {}, "square crop of the centre"),
    "padded": ({"crop_pct": 1.25}, {}, "a page cannot pad pictures"),
    "no square": ({"input_size": (3, 64, 96)}, {}, "to 64 x 96 px"),
    "half precision": ({}, {"precision": "fp16"}, "the format web has no precision fp16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_page_cannot_do_is_refused(case, tmp_path):
    cfg, options, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        export_web(small_model(**cfg), tmp_path / "page", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_the_runtime_is_refused(tmp_path):
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / RUNTIME_FILES[0]).touch()
    with pytest.raises(FileNotFoundError, match="npm install onnxruntime-web"):
        export_web(small_model(), tmp_path / "page", runtime=tmp_path)
