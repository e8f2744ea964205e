"""The demo page without a browser: what the models are asked, what the page says, and its functions over HTTP."""

import html
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import gradio as gr
import pytest
import timm
import torch
from gradio_client import Client, handle_file
from PIL import Image

import softcam_hub
from softcam_hub import CAPE_LESIONS, Explanation, create_explainer
from softcam_hub.cli import main
from softcam_hub.data.lesions import draw
from softcam_hub.demo import open_page, views
from softcam_hub.demo.answers import Answers
from softcam_hub.demo.page import Page
from softcam_hub.demo.viewer import Viewer
from softcam_hub.evaluation.models import DEFAULT_POST_HOC

SPACE = Path(softcam_hub.__file__).parent / "hub" / "spaces" / "demo"


@pytest.fixture(scope="module")
def softcam_folder(tmp_path_factory):
    """A SoftCAM model with random weights, which is exact and so has a twin."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("softcam") / "model"
    config = softcam_hub.SoftCAMConfig(architecture="softcam_test_resnet", id2label={0: "cat", 1: "dog", 2: "<b>cow"})
    softcam_hub.SoftCAMForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answers(softcam_folder):
    return Answers([CAPE_LESIONS, softcam_folder])


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A picture about which the shipped model is in some doubt."""
    file = tmp_path_factory.mktemp("pictures") / "eye.png"
    draw(3, "test", 256).image.rotate(20).resize((130, 120)).save(file)
    return file


@pytest.fixture(scope="module")
def page(softcam_folder):
    blocks = open_page([CAPE_LESIONS, softcam_folder])
    yield blocks
    blocks.close()


def text_of(fragment):
    """The words of some HTML."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", fragment)).split())


def expected(picture, classes=None, top_k=2, kind=None):
    """The shipped model's explanation, by the Hugging Face door alone."""
    model = softcam_hub.CAPEForImageClassification.from_pretrained(CAPE_LESIONS)
    config = timm.data.resolve_data_config({}, pretrained_cfg=model.pretrained_cfg)
    pixels = timm.data.create_transform(**config)(Image.open(picture).convert("RGB"))[None]
    return model.explain(pixels, classes, top_k=top_k, kind=kind)


def test_a_viewer_asks_the_model_about_its_own_pixels(picture):
    viewer = Viewer(CAPE_LESIONS)
    pixels = viewer.see(Image.open(picture).convert("RGB"))
    assert viewer.labels == ["healthy", "microaneurysm", "haemorrhage", "exudate"]
    assert viewer.probabilities(pixels).sum() == pytest.approx(1)
    found, reference = viewer.explain(pixels, [3, 0]), expected(picture, [[3, 0]])
    assert list(found) == ["cape", "mu-cape"]
    torch.testing.assert_close(found["cape"].maps, reference.maps)
    torch.testing.assert_close(found["mu-cape"].maps, expected(picture, [[3, 0]], kind="mu-cape").maps)
    assert viewer.seen(pixels).size == (128, 128)


def test_without_a_twin_post_hoc_maps_are_those_of_the_model(picture):
    viewer = Viewer(CAPE_LESIONS)
    assert viewer.twin is None
    pixels = viewer.see(Image.open(picture).convert("RGB"))
    found, left_out = viewer.post_hoc(pixels, 2)
    assert set(found) == set(DEFAULT_POST_HOC) - {"lift-cam", "fd-cam"}
    assert "DeepLIFT's contributions miss" in left_out["lift-cam"]
    torch.testing.assert_close(found["grad-cam"].maps, create_explainer("grad-cam", viewer.model)(pixels, 2))
    assert float(found["grad-cam"].probabilities) == pytest.approx(float(viewer.probabilities(pixels)[2]))


def test_a_softcam_model_is_turned_back_into_its_twin(softcam_folder, picture):
    viewer = Viewer(softcam_folder)
    pixels = viewer.see(Image.open(picture).convert("RGB"))
    assert not isinstance(viewer.twin.model, softcam_hub.Classifier)
    torch.testing.assert_close(viewer.twin.model(pixels).softmax(dim=1)[0], viewer.probabilities(pixels))
    found, left_out = viewer.post_hoc(pixels, 0)
    assert set(found) == set(DEFAULT_POST_HOC)
    assert left_out == {}


@pytest.mark.parametrize("folder", ["vanilla", "twin"])  # `twin` in runs made before
def test_the_vanilla_classifier_beside_the_model_is_what_post_hoc_methods_explain(folder, picture, tmp_path):
    shutil.copytree(CAPE_LESIONS, tmp_path / "model")
    twin = timm.create_model("test_resnet", num_classes=4)
    timm.models.save_for_hf(twin, tmp_path / folder, model_config={"num_classes": 4}, safe_serialization=True)
    viewer = Viewer(tmp_path / "model")
    pixels = viewer.see(Image.open(picture).convert("RGB"))
    found = viewer.post_hoc(pixels, 1)[0]["grad-cam"]
    torch.testing.assert_close(found.maps, create_explainer("grad-cam", twin)(pixels, 1))
    assert float(found.probabilities) == pytest.approx(float(twin.eval()(pixels).softmax(dim=1)[0, 1]))
    answers = Answers([tmp_path / "model"])
    answer, _ = answers.look(picture, str(tmp_path / "model"))
    assert "explain the vanilla twin of this model" in text_of(answers.post_hoc(answer))


def test_a_black_box_is_refused(tmp_path):
    twin = timm.create_model("test_resnet", num_classes=4)
    timm.models.save_for_hf(twin, tmp_path / "plain", model_config={"num_classes": 4}, safe_serialization=True)
    with pytest.raises(ValueError, match="plain is a black box, which has no maps of its own: name a softcam_"):
        Viewer(tmp_path / "plain")


def test_the_prediction_is_the_models(answers, picture):
    answer, remark = answers.look(picture, "cape_lesions")
    reference, words = expected(picture, top_k=4), text_of(answers.prediction(answer))
    names = ["healthy", "microaneurysm", "haemorrhage", "exudate"]
    for index, probability in zip(reference.classes[0].tolist(), reference.probabilities[0].tolist(), strict=True):
        said = f"{probability:.2%}" if probability >= 5e-5 else "under 0.01%"
        assert f"{names[index]} {said}" in words
    assert remark == ""
    assert answer.classes == reference.classes[0, :2].tolist()


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 0.95])
def test_the_regions_are_those_of_the_library(answers, picture, threshold):
    answer, _ = answers.look(picture, "cape_lesions")
    reference, words = expected(picture).regions(threshold), text_of(answers.regions(answer, threshold))
    for rank in (0, 1):
        assert reference.describe(rank=rank) in words


def test_the_lit_part_of_the_picture_is_the_region():
    maps = torch.tensor([[[[0.6, 0.0], [0.05, 0.0]]]])
    explanation = Explanation(maps, torch.tensor([[0]]), torch.tensor([[0.65]]), "cape")
    seen = Image.new("RGB", (64, 64), "white")
    lit = views._lit(seen, explanation.regions(0.05), 0)
    pixels = {place: lit.getpixel(place) for place in ((10, 10), (50, 10), (10, 50), (50, 50))}
    assert pixels == {(10, 10): (255,) * 3, (50, 10): (85,) * 3, (10, 50): (255,) * 3, (50, 50): (85,) * 3}


def test_the_difference_adds_up(answers, picture):
    answer, _ = answers.look(picture, "cape_lesions")
    answer = answers.choose(answer, [0, 3])
    reference = expected(picture, [[0, 3]])
    a, b = reference.probabilities[0].tolist()
    words = text_of(answers.difference(answer))
    assert "healthy minus exudate" in words
    assert f"All cells add up to the difference of the probabilities: {a - b:+.2%}" in words
    strongest = (-reference.difference()[0]).flatten().topk(5).values
    assert f"For exudate: top 5 (5 cells): {strongest.sum():.2%}" in words


def test_one_class_has_nothing_to_be_compared_with(answers, picture):
    answer, _ = answers.look(picture, "cape_lesions")
    answer = answers.choose(answer, [1])
    assert text_of(answers.difference(answer)) == "Choose two different classes to compare them."
    assert answers.maps(answer).count("<figure>") == 2  # one class, two kinds of map


def test_softcam_maps_have_logits_and_no_regions(answers, softcam_folder, picture):
    answer, _ = answers.look(picture, str(softcam_folder))
    assert answers.regions(answer, 0.05) == ""
    logits = [float(values.mean()) for values in answer.own.maps[0]]
    assert f"logit {logits[0]:+.2f}" in text_of(answers.maps(answer))
    assert f"is the difference of the logits: {logits[0] - logits[1]:+.2f}" in text_of(answers.difference(answer))
    assert "explain the vanilla twin of this model" in text_of(answers.post_hoc(answer))


def test_names_of_classes_are_text_and_not_markup(answers, softcam_folder, picture):
    answer, _ = answers.look(picture, str(softcam_folder))
    answer = answers.choose(answer, [2, 0])
    for fragment in (
        answers.prediction(answer),
        answers.maps(answer),
        answers.difference(answer),
        answers.post_hoc(answer),
    ):
        assert "<b>cow" not in fragment
        assert "&lt;b&gt;cow" in fragment


def test_many_classes_are_counted():
    words = text_of(
        views.prediction(Image.new("RGB", (8, 8)), [f"class {i}" for i in range(1000)], torch.arange(1000) / 1000)
    )
    assert words.startswith("what the model saw class 999 99.90% class 998")
    assert words.endswith("and 995 less probable classes")


def test_a_map_without_contrast_says_so():
    own, other = (
        Explanation(torch.full((1, 1, 2, 2), v), torch.tensor([[0]]), torch.ones(1, 1), "cape") for v in (0.25, 0.0)
    )
    words = text_of(views.side_by_side(Image.new("RGB", (8, 8)), own, {"grad-cam": other}))
    assert words == "CAPE nothing stands out grad-cam nothing stands out"


def test_the_page_over_http(page, picture):
    client = Client(page.local_url, verbose=False, analytics_enabled=False)
    client.predict(handle_file(picture), api_name="/take")
    notice, _, first, second, _, regions, _, _ = client.predict("cape_lesions", 0.05, api_name="/look")
    reference = expected(picture)
    assert notice == ""
    assert [first["value"], second["value"]] == reference.classes[0].tolist()
    assert reference.regions(0.05).describe() in text_of(regions)
    moved = client.predict(0.6, api_name="/slide")
    assert reference.regions(0.6).describe(rank=1) in text_of(moved)
    chosen = client.predict(0, 3, 0.3, api_name="/choose")
    assert expected(picture, [[0, 3]]).regions(0.3).describe(rank=1) in text_of(chosen[1])


def test_a_bad_upload_over_http_clears_the_answer(page, tmp_path):
    (tmp_path / "diary.png").write_text("dear diary")
    client = Client(page.local_url, verbose=False, analytics_enabled=False)
    client.predict(handle_file(tmp_path / "diary.png"), api_name="/take")
    notice, prediction, *_ = client.predict("cape_lesions", 0.05, api_name="/look")
    assert text_of(notice).startswith("diary.png cannot be read: it is no image")
    assert 'role="alert"' in notice
    assert prediction == ""
    assert client.predict(0.5, api_name="/slide") == ""


def test_an_answer_that_is_no_longer_kept_is_said_to_be_gone(answers):
    page = Page(answers)
    with pytest.raises(gr.Error, match="This picture is no longer here: upload it again"):
        page.choose(None, 0, 1, 0.5)
    assert page.slide(None, 0.5) == ""


def test_the_page_names_no_other_host(page):
    content = urllib.request.urlopen(page.local_url, timeout=30).read().decode()
    loaded = re.findall(r"""(?:src|href)=["'](https?://[^"']+)""", content)
    assert [url for url in loaded if not url.startswith(page.local_url)] == []
    assert page.config["analytics_enabled"] is False


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_port_in_use_is_refused_before_models_are_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port), "--model", "no-such-model"]) == 1
    said = capsys.readouterr().err
    assert f"softcam-hub: error: 127.0.0.1:{port} cannot be listened on (Address already in use)" in said
    assert "choose another --host or --port" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--port", "70000"], "port must be from 1 to 65535, got 70000"),
        (["--model", "no/such/folder"], "there is no model 'no/such/folder'"),
        (["--host", "nowhere.invalid"], "nowhere.invalid cannot be listened on"),
    ],
)
def test_mistakes_on_the_command_line(words, sentence, capsys):
    assert main(["demo", *words]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_requirements_of_the_space_are_those_of_the_package():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 does not read TOML")
    project = tomllib.loads((SPACE.parents[2] / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    assert (SPACE / "requirements.txt").read_text().split() == wanted


WITHOUT_GRADIO = """
import sys
sys.modules["gradio"] = None
from softcam_hub.evaluation.models import DEFAULT_POST_HOC
from softcam_hub.cli import main
sys.exit(main(["demo"]))
"""


@pytest.mark.slow
def test_without_gradio_there_is_a_hint():
    done = subprocess.run([sys.executable, "-c", WITHOUT_GRADIO], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    hint = "softcam-hub: error: the demo page needs an extra package: pip install 'softcam-hub[demo]'\n"
    assert without_torch_log(done.stderr) == hint


def without_torch_log(errors):
    """What a process wrote to its errors, without torch's warnings on importing torchao where that is installed."""
    return re.sub(r"^W\d{4} \S+ \d+ \S*torch/.*\n", "", errors, flags=re.MULTILINE)


def started(command, line, **options):
    """A process that has printed a line with these words."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    said = process.stdout.readline()
    assert line in said, said + process.stderr.read()
    return process, said


@pytest.mark.slow
def test_ctrl_c_ends_the_command_quietly():
    port = free_port()
    process, _ = started(
        [sys.executable, "-m", "softcam_hub", "demo", "--port", str(port)], f"http://127.0.0.1:{port}/"
    )
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest.strip(), without_torch_log(errors)) == (0, "", "")


@pytest.mark.slow
def test_the_space_runs_on_its_own_copy_of_the_package(tmp_path, picture):
    shutil.copytree(SPACE, tmp_path, dirs_exist_ok=True)
    package = Path(softcam_hub.__file__).parent
    shutil.copytree(package, tmp_path / "softcam_hub", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port := free_port()), "HF_HUB_OFFLINE": "1"}
    code = "import runpy, softcam_hub; print(softcam_hub.__file__, flush=True); runpy.run_path('app.py', run_name='__main__')"
    process, _ = started([sys.executable, "-c", code], str(tmp_path), cwd=tmp_path, env=environment)
    try:
        client = connected(f"http://127.0.0.1:{port}/", process)
        client.predict(handle_file(picture), api_name="/take")
        regions = client.predict("cape_lesions", 0.05, api_name="/look")[5]
        assert expected(picture).regions(0.05).describe() in text_of(regions)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def connected(url, process, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            return Client(url, verbose=False, analytics_enabled=False)
        except Exception:  # not there yet, or half there
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer")
