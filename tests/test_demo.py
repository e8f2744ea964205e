"""The demo page without a browser: its models, its HTML, and its functions over HTTP."""

import base64
import io
import json
import re
import shutil
import urllib.request

import gradio as gr
import numpy as np
import pytest
import timm
import torch
from gradio_client import Client, handle_file
from helpers.demo import draw_picture, expected, text_of
from PIL import Image

import softcam_hub
from softcam_hub import CAPE_LESIONS, Explanation, create_explainer
from softcam_hub.demo import open_page, views
from softcam_hub.demo.models import DemoModel, ExplainedImage
from softcam_hub.demo.page import Page
from softcam_hub.evaluation.models import DEFAULT_POST_HOC
from softcam_hub.figures.drawing import enlarge
from softcam_hub.models.overlays import scale_of, spread, tint
from softcam_hub.models.text import format_share


@pytest.fixture(scope="module")
def softcam_folder(tmp_path_factory):
    """Save a SoftCAM model with random weights. It is exact, so it can be turned back into its vanilla classifier."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("softcam") / "model"
    config = softcam_hub.SoftCAMConfig(architecture="softcam_test_resnet", id2label={0: "cat", 1: "dog", 2: "<b>cow"})
    softcam_hub.SoftCAMForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cape():
    return DemoModel(CAPE_LESIONS)


@pytest.fixture(scope="module")
def softcam(softcam_folder):
    return DemoModel(softcam_folder)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    return draw_picture(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def image(picture):
    return Image.open(picture).convert("RGB")


@pytest.fixture(scope="module")
def page(softcam_folder):
    blocks = open_page([CAPE_LESIONS, softcam_folder])
    yield blocks
    blocks.close()


def test_a_model_explains_a_picture_as_its_hugging_face_class_does(cape, image, picture):
    explained = cape.explain(image)
    assert explained.labels == ["healthy", "microaneurysm", "haemorrhage", "exudate"]
    assert explained.probabilities.sum() == pytest.approx(1)
    assert explained.image.size == (128, 128)
    assert explained.classes == expected(picture).classes[0].tolist()
    explanations = cape.explain_classes(explained, [3, 0]).explanations
    assert list(explanations) == ["cape", "mu-cape"]
    for kind, explanation in explanations.items():
        torch.testing.assert_close(explanation.maps, expected(picture, [[3, 0]], kind=kind).maps)


def test_without_a_vanilla_classifier_post_hoc_maps_explain_the_model(cape, image):
    assert cape.vanilla is None
    explained = cape.explain_classes(cape.explain(image), [2])
    explanations, reasons = cape.post_hoc(explained)
    assert set(explanations) == set(DEFAULT_POST_HOC) - {"lift-cam", "fd-cam"}
    assert "DeepLIFT's contributions miss" in reasons["lift-cam"]
    reference = create_explainer("grad-cam", cape.model)(explained.pixels, 2)
    torch.testing.assert_close(explanations["grad-cam"].maps, reference)
    assert float(explanations["grad-cam"].probabilities) == pytest.approx(float(explained.probabilities[2]))


def test_a_softcam_model_is_turned_back_into_its_vanilla_classifier(softcam, image):
    explained = softcam.explain(image)
    assert not isinstance(softcam.vanilla.model, softcam_hub.Classifier)
    logits = softcam.vanilla.model(explained.pixels)
    torch.testing.assert_close(logits.softmax(dim=1)[0], explained.probabilities)
    explanations, reasons = softcam.post_hoc(explained)
    assert set(explanations) == set(DEFAULT_POST_HOC)
    assert reasons == {}


@pytest.mark.parametrize("folder", ["vanilla", "twin"])  # `twin` in older runs
def test_post_hoc_methods_explain_the_vanilla_classifier_beside_the_model(folder, image, tmp_path):
    shutil.copytree(CAPE_LESIONS, tmp_path / "model")
    vanilla = timm.create_model("test_resnet", num_classes=4)
    timm.models.save_for_hf(vanilla, tmp_path / folder, model_config={"num_classes": 4}, safe_serialization=True)
    model = DemoModel(tmp_path / "model")
    explained = model.explain_classes(model.explain(image), [1])
    explanations, reasons = model.post_hoc(explained)
    maps = create_explainer("grad-cam", vanilla)(explained.pixels, 1)
    torch.testing.assert_close(explanations["grad-cam"].maps, maps)
    probability = vanilla.eval()(explained.pixels).softmax(dim=1)[0, 1]
    assert float(explanations["grad-cam"].probabilities) == pytest.approx(float(probability))
    text = text_of(views.render_post_hoc(explained, explanations, reasons, is_vanilla=True))
    assert "explain the vanilla classifier of this model" in text


def test_the_vanilla_classifier_with_the_same_backbone_has_the_place_of_the_model(cape, image, tmp_path):
    shutil.copytree(CAPE_LESIONS, tmp_path / "model")
    own = timm.create_model(f"local-dir:{CAPE_LESIONS}", pretrained=True)
    vanilla = softcam_hub.to_vanilla(own)
    timm.models.save_for_hf(
        vanilla,
        tmp_path / "vanilla",
        model_config={"num_classes": 4, "model_args": own.backbone_args},
        safe_serialization=True,
    )
    model = DemoModel(tmp_path / "model")
    assert model.vanilla.model.alignment == own.alignment
    explanations, _ = model.post_hoc(model.explain(image))
    assert explanations["grad-cam"].layout().offset == pytest.approx(own.map_offset())


def test_a_vanilla_classifier_is_refused(tmp_path):
    vanilla = timm.create_model("test_resnet", num_classes=4)
    timm.models.save_for_hf(vanilla, tmp_path / "plain", model_config={"num_classes": 4}, safe_serialization=True)
    with pytest.raises(ValueError, match="plain is a vanilla classifier, which has no maps of its own: name a softcam"):
        DemoModel(tmp_path / "plain")


def test_the_table_shows_the_probabilities_of_the_model(cape, image, picture):
    explained = cape.explain(image)
    reference, words = expected(picture, top_k=4), text_of(views.render_prediction(explained))
    for index, probability in zip(reference.classes[0].tolist(), reference.probabilities[0].tolist(), strict=True):
        assert f"{explained.labels[index]} {format_share(probability)}" in words


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 0.95])
def test_the_regions_are_those_of_the_library(cape, image, picture, threshold):
    reference = expected(picture).regions(threshold)
    words = text_of(views.render_regions(cape.explain(image), threshold))
    for rank in (0, 1):
        assert reference.describe(rank=rank) in words


def test_the_bright_part_of_the_picture_is_the_region():
    maps = torch.tensor([[[[0.6, 0.0], [0.05, 0.0]]]])
    explanation = Explanation(maps, torch.tensor([[0]]), torch.tensor([[0.65]]), "cape")
    highlighted = views._highlight(
        Image.new("RGB", (64, 64), "white"), explanation.regions(0.05), 0, explanation.layout()
    )
    pixels = {place: highlighted.getpixel(place) for place in ((10, 10), (50, 10), (10, 50), (50, 50))}
    assert pixels == {(10, 10): (255,) * 3, (50, 10): (85,) * 3, (10, 50): (255,) * 3, (50, 50): (85,) * 3}


def test_the_difference_adds_up(cape, image, picture):
    words = text_of(views.render_difference(cape.explain_classes(cape.explain(image), [0, 3])))
    reference = expected(picture, [[0, 3]])
    a, b = reference.probabilities[0].tolist()
    assert "healthy minus exudate" in words
    assert f"All cells add up to the difference of the probabilities: {format_share(a - b, '+')}" in words
    strongest = (-reference.difference()[0]).flatten().topk(5).values
    assert f"For exudate: top 5 (5 cells): {format_share(float(strongest.sum()))}" in words
    high = reference.difference().abs().max()
    assert f"{-100 * high:.3g}% 0% {100 * high:+.3g}%" in words


def test_one_class_has_no_difference(cape, image):
    explained = cape.explain_classes(cape.explain(image), [1])
    assert text_of(views.render_difference(explained)) == "Choose two different classes to compare them."
    assert views.render_maps(explained).count("<figure>") == 2  # one class, two kinds of map


def test_softcam_maps_have_logits_and_no_regions(softcam, image):
    explained = softcam.explain(image)
    assert views.render_regions(explained, 0.05) == ""
    logits = [float(values.mean()) for values in explained.explanation.maps[0]]
    assert f"logit {logits[0]:+.2f}" in text_of(views.render_maps(explained))
    difference = f"is the difference of the logits: {logits[0] - logits[1]:+.2f}"
    assert difference in text_of(views.render_difference(explained))


def test_class_names_are_text_and_not_markup(softcam, image):
    explained = softcam.explain_classes(softcam.explain(image), [2, 0])
    for fragment in (
        views.render_prediction(explained),
        views.render_maps(explained),
        views.render_difference(explained),
        views.render_post_hoc(explained, {}, {}, is_vanilla=True),
    ):
        assert "<b>cow" not in fragment
        assert "&lt;b&gt;cow" in fragment


def explained_image(labels, probabilities, explanation, file="eye.png"):
    """Make an explained image of the parts that the views show."""
    return ExplainedImage("model", file, labels, torch.zeros(1, 3, 8, 8), probabilities, {"cape": explanation})


def constant_explanation(value):
    blank = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    return Explanation(torch.full((1, 1, 2, 2), value), torch.tensor([[0]]), torch.ones(1, 1), "cape", pixels=blank)


def test_many_classes_are_counted():
    labels = [f"class {index}" for index in range(1000)]
    explained = explained_image(labels, torch.arange(1000) / 1000, constant_explanation(0.25))
    words = text_of(views.render_prediction(explained))
    assert words.startswith("eye.png as the model saw it class 999 99.9% class 998 99.8%")
    assert words.endswith("and 995 less probable classes")


def test_a_map_without_contrast_is_named():
    explained = explained_image(["cat"], torch.ones(1), constant_explanation(0.25))
    words = text_of(views._render_heatmaps(explained, {"grad-cam": constant_explanation(0.0)}))
    assert words == "CAPE nothing stands out grad-cam nothing stands out minimum maximum"


def test_a_file_name_is_text_and_not_markup():
    explained = explained_image(["cat"], torch.ones(1), constant_explanation(0.25), '"><b>\u202e.png')
    for fragment in (views.render_prediction(explained), views.render_downloads(explained)):
        assert "<b>" not in fragment
    assert '"&gt;&lt;b&gt;' not in views.render_downloads(explained), "a quotation mark would end the attribute"


def test_every_kind_of_map_is_introduced_in_a_sentence_and_has_its_colour_bar(cape, softcam, image):
    explained = cape.explain(image)
    words = text_of(views.render_maps(explained))
    assert "CAPE divides the probability of a class among the places of the picture" in words
    assert "μ-CAPE shows every place with evidence for a class" in words
    for explanation in explained.explanations.values():
        scale = scale_of(explanation.maps, explanation.kind)
        assert f"{' '.join(scale.labels())} Values of these maps: {scale.describe_range(explanation.maps)}" in words
    assert views.render_maps(explained).count("linear-gradient") == 2
    assert "SoftCAM shows the evidence of each place for the class (orange)" in text_of(
        views.render_maps(softcam.explain(image))
    )


def test_a_map_is_a_layer_over_the_grey_picture_with_the_opacity_of_the_library(cape, image):
    explained = cape.explain(image)
    maps, canvas = explained.explanation.maps[0], enlarge(explained.image, 64)
    scale, values = scale_of(maps, "cape"), spread(maps[0], canvas, explained.explanation.layout())
    tile = views._map_tile("", canvas, values, scale)
    layer = np.asarray(tile.layer).astype(float)
    alpha = 0.75 * layer[..., 3:] / 255
    blended = (1 - alpha) * np.asarray(tile.picture) + alpha * layer[..., :3]
    assert np.abs(blended - np.asarray(tint(canvas, values, scale))).max() <= 2


def test_the_page_says_what_a_model_was_trained_on(cape, softcam, tmp_path):
    names = "to tell apart healthy, microaneurysm, haemorrhage, exudate. "
    nothing = "Pictures of anything else get an answer too, but it means nothing."
    assert cape.training == f"This model was trained on lesions (pictures that a program draws) {names}{nothing}"
    assert softcam.training == f"This model was trained to tell apart cat, dog, <b>cow. {nothing}"
    shutil.copytree(CAPE_LESIONS, tmp_path / "model")
    (tmp_path / "model" / "metrics.json").write_text('{"data": "you/photographs"}')
    assert DemoModel(tmp_path / "model").training == f"This model was trained on you/photographs {names}{nothing}"


def test_the_downloads_are_the_picture_and_the_numbers_of_the_page(cape, image):
    explained = cape.explain(image, "an eye.png")
    links = re.findall(r'download="([^"]*)" href="data:[^,]*,([^"]*)"', views.render_downloads(explained))
    (picture, drawn), (numbers, text) = [(name, base64.b64decode(content)) for name, content in links]
    assert (picture, numbers) == ("an eye-explained.png", "an eye-explained.json")
    assert Image.open(io.BytesIO(drawn)).width > 400
    content = json.loads(text)
    assert content["file"] == "an eye.png"
    assert content["label"] == explained.labels[explained.classes[0]]
    assert content["score"] == pytest.approx(float(explained.probabilities.max()))
    for kind, explanation in explained.explanations.items():
        torch.testing.assert_close(torch.tensor(content["maps"][kind]), explanation.maps[0])


def connect(page):
    return Client(page.local_url, verbose=False, analytics_enabled=False)


def test_the_page_over_http(page, picture):
    client = connect(page)
    answer = client.predict(handle_file(picture), "cape_lesions", 0.05, api_name="/upload")
    field, _, notice, training, prediction, first, second, _, downloads, regions, _, _ = answer
    reference = expected(picture)
    assert (field, notice) == (None, "")
    assert "trained on lesions" in training
    assert "eye.png as the model saw it" in text_of(prediction)
    assert [first["value"], second["value"]] == reference.classes[0].tolist()
    assert reference.regions(0.05).describe() in text_of(regions)
    assert 'download="eye-explained.json"' in downloads
    moved = client.predict(0.6, api_name="/move_threshold")
    assert reference.regions(0.6).describe(rank=1) in text_of(moved)
    chosen = client.predict(0, 3, 0.3, api_name="/choose_classes")
    assert expected(picture, [[0, 3]]).regions(0.3).describe(rank=1) in text_of(chosen[2])


def test_a_bad_upload_over_http_changes_nothing_but_the_notice(page, picture, tmp_path):
    (tmp_path / "diary.png").write_text("dear diary")
    client = connect(page)
    client.predict(handle_file(picture), "cape_lesions", 0.05, api_name="/upload")
    bad = handle_file(tmp_path / "diary.png")
    field, gallery, notice, *others = client.predict(bad, "cape_lesions", 0.05, api_name="/upload")
    assert text_of(notice).startswith("diary.png cannot be read: it is not an image")
    assert 'role="alert"' in notice
    assert field is None
    assert not any("value" in other or "selected_index" in other for other in (gallery, *others)), (gallery, others)
    assert not any("<" in str(other) for other in others), "no new content"
    assert expected(picture).regions(0.5).describe() in text_of(client.predict(0.5, api_name="/move_threshold"))
    again = client.predict("cape_lesions", 0.05, api_name="/explain")
    assert "eye.png as the model saw it" in text_of(again[2]), "the picture before is still the one that is shown"


def test_an_expired_picture_must_be_uploaded_again(cape):
    page = Page([cape])
    with pytest.raises(gr.Error, match="This picture is no longer here: upload it again"):
        page.choose_classes(None, 0, 1, 0.5)
    assert page.move_threshold(None, 0.5) == ""


def test_the_page_names_no_other_host(page):
    content = urllib.request.urlopen(page.local_url, timeout=30).read().decode()
    loaded = re.findall(r"""(?:src|href)=["'](https?://[^"']+)""", content)
    assert [url for url in loaded if not url.startswith(page.local_url)] == []
    assert page.config["analytics_enabled"] is False
