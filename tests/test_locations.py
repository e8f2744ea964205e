"""Tables name local files: addresses need a setting, and a missing file is named before training."""

import io
import os
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pytest
from helpers.data import load, manifest, paint

from softcam_hub.data.columns import Columns
from softcam_hub.data.config import DataConfig
from softcam_hub.data.locations import Locations, check_image_paths
from softcam_hub.data.sources import read_source
from softcam_hub.models.downloads import DownloadError
from softcam_hub.models.images import UnreadableImage
from softcam_hub.training import parse

pytestmark = pytest.mark.usefixtures("dataset_cache")


class RecordingHandler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        """Keep the access log out of the output of the tests."""


@pytest.fixture
def server(tmp_path):
    """Start a server of the test's folder that records the requests."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RecordingHandler, directory=str(tmp_path)))
    server.requests = []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


ADDRESSES = {
    "http": "http://127.0.0.1:{port}/remote.png",
    "https": "https://127.0.0.1:{port}/remote.png",
    "upper-case": "HTTP://127.0.0.1:{port}/remote.png",
    "file": "file://{folder}/remote.png",
    "local": "local://{folder}/remote.png",
    "zip": "zip://remote.png::{folder}/remote.zip",
    "zip-of-http": "zip://remote.png::http://127.0.0.1:{port}/remote.zip",
    "cache-of-http": "simplecache::http://127.0.0.1:{port}/remote.png",
    "s3": "s3://bucket/remote.png",
    "gs": "gs://bucket/remote.png",
    "hf": "hf://datasets/you/images/remote.png",
    "ftp": "ftp://127.0.0.1/remote.png",
    "memory": "memory://remote.png",
    "github": "github://you:repository@/remote.png",
    "reference": "reference://remote.png",
    "escape": "http://127.0.0.1:{port}/\x1b[31mremote.png",
}


@pytest.fixture
def address(request, tmp_path, server):
    paint(tmp_path / "remote.png")
    with zipfile.ZipFile(tmp_path / "remote.zip", "w") as archive:
        archive.write(tmp_path / "remote.png", "remote.png")
    return ADDRESSES[request.param].format(port=server.server_port, folder=tmp_path)


def table(folder, images, masks=None, kind="csv"):
    """Write a manifest of images with the labels a, b, a, ... and with masks, if they are given."""
    columns = {"image": images, "label": ["ab"[row % 2] for row in range(len(images))]}
    if masks:
        columns["mask"] = masks
    data = datasets.Dataset.from_dict(columns)
    path = folder / f"table.{kind}"
    (data.to_csv if kind == "csv" else data.to_parquet)(str(path))
    return path


REFUSAL = "is not a local file: expected paths of local files"


@pytest.mark.parametrize("address", ADDRESSES, indirect=True)
def test_an_address_in_a_manifest_is_refused_with_its_row_and_nothing_is_read(address, tmp_path, server):
    local = [str(paint(tmp_path / f"{number}.png")) for number in range(3)]
    path = table(tmp_path, [*local, address])
    for settings in ({}, {"unreadable": "skip"}, {"hold_out": 0.5}):
        with pytest.raises(ValueError, match=f"row 3 of split 'train' .* {REFUSAL}.*--remote-images") as caught:
            load(path, **settings)
        assert str(caught.value).isprintable()
    assert not server.requests


@pytest.mark.parametrize("address", ["http", "file", "zip"], indirect=True)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_address_of_a_mask_is_refused_with_its_row(address, kind, tmp_path, server):
    local = [str(paint(tmp_path / f"{number}.png")) for number in range(3)]
    with pytest.raises(ValueError, match=f"the mask of row 1 of split 'train' .* {REFUSAL}"):
        load(table(tmp_path, local, [None, address, local[0]], kind))
    assert not server.requests


@pytest.mark.parametrize("address", ["http", "file", "zip"], indirect=True)
def test_an_address_in_the_rows_of_a_saved_data_set_is_refused(address, tmp_path, server):
    local = str(paint(tmp_path / "0.png"))
    cells = {"image": [{"path": path, "bytes": None} for path in (local, address)], "label": [0, 1]}
    names = datasets.ClassLabel(names=["a", "b"])
    data = datasets.Dataset.from_dict(cells, datasets.Features({"image": datasets.Image(), "label": names}))
    data.save_to_disk(str(tmp_path / "saved"))
    for settings in ({}, {"streaming": True}, {"unreadable": "skip"}):
        with pytest.raises(ValueError, match=f"row 1 of split 'train' .* {REFUSAL}"):
            load(tmp_path / "saved", **settings)
    assert not server.requests


@pytest.mark.parametrize("address", ["http", "upper-case", "file", "local", "zip"], indirect=True)
def test_remote_images_allows_addresses(address, tmp_path):
    local = str(paint(tmp_path / "0.png", (1, 2, 3)))
    splits = load(table(tmp_path, [local, address], [address, address]), remote_images=True)
    assert [splits.train.image(index).getpixel((0, 0)) for index in (0, 1)] == [(1, 2, 3), (200, 30, 30)]
    assert np.asarray(splits.train.mask(1)).min() == 255


def test_a_failed_download_is_an_error_even_with_unreadable_skip(tmp_path, server):
    local = [str(paint(tmp_path / f"{number}.png")) for number in range(2)]
    path = table(tmp_path, [*local, f"http://127.0.0.1:{server.server_port}/none.png"])
    with pytest.raises(DownloadError, match="row 2 of split 'train' .* cannot be downloaded: the server answered 404"):
        load(path, remote_images=True, unreadable="skip")


def test_remote_images_is_a_flag():
    assert parse(["--data", "x.csv", "--remote-images", "--output", "y"]).data.remote_images
    assert not DataConfig().remote_images


def test_a_data_set_on_the_hub_may_read_its_own_files_and_no_others(monkeypatch):
    monkeypatch.setattr("softcam_hub.data.sources._read_hub", lambda *_: {})
    own = read_source(DataConfig("you/images")).locations
    for address in ("hf://datasets/you/images/1.png", "zip://1.png::hf://datasets/you/images/1.zip"):
        own.check_address(address, "row 0")
    foreign = ("https://example.org/1.png", "file:///etc/passwd", "zip://1.png::https://example.org/1.zip")
    for address in (*foreign, "https://example.org/1.png::hf://1.png", "file:///etc/passwd::hf://1.png"):
        with pytest.raises(ValueError, match=REFUSAL):
            own.check_address(address, "row 0")
    read_source(DataConfig("you/images", remote_images=True)).locations.check_address("https://example.org", "row 0")


def test_a_manifest_may_name_absolute_paths_and_paths_outside_its_folder(tmp_path):
    absolute = str(paint(tmp_path / "elsewhere/0.png"))
    (tmp_path / "here").mkdir()
    path = table(tmp_path / "here", ["../elsewhere/0.png", absolute])
    assert load(path).train.image(0).size == (12, 10)


MISSING = {
    "missing": "none.png",
    "folder": ".",
    "long": "n" * 300,
    "long-path": "n/" * 3000,
    "device": "/dev/zero",
    "one-slash": "http:/127.0.0.1/x.png",
    "newline": "a\nb.png",
    "escape": "\x1b[31mred.png",
    "wild": "*.png",
    "home": "~/0.png",
    "variable": "$HOME/0.png",
    "data": "data:image/png;base64,AAAA",
    "below-a-file": "0.png/1.png",
}


@pytest.mark.parametrize("kind", MISSING)
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_missing_file_is_named_with_its_row_before_training(kind, form, tmp_path):
    local = [paint(tmp_path / f"{number}.png").name for number in range(3)]
    path = table(tmp_path, [*local, MISSING[kind]], kind=form)
    with pytest.raises(UnreadableImage, match="^row 3 of split 'train' .* cannot be read: there is no file ") as caught:
        load(path)
    assert str(caught.value).isprintable()
    assert len(load(path, unreadable="skip").train) == 3


def test_the_row_is_that_of_the_split_and_the_others_are_counted(tmp_path):
    rows = ["0.png,a,train", "1.png,b,train", "2.png,a,test", "none.png,b,test", "gone.png,a,test"]
    path = manifest(tmp_path, "image,label,split\n" + "\n".join(f"images/{row}" for row in rows))
    with pytest.raises(
        UnreadableImage, match=r"row 1 of split 'test' \(images/none.png\) .*\(and 1 more are missing\)"
    ):
        load(path)


def folder_with_metadata(folder, lines, header="file_name,label"):
    for number in range(3):
        paint(folder / f"{number}.png")
    (folder / "metadata.csv").write_text("\n".join([header, *lines]))
    return folder


def test_a_missing_file_of_a_metadata_csv_is_named_with_its_row(tmp_path):
    folder_with_metadata(tmp_path, ["0.png,0", "1.png,1", "none.png,0", "2.png,1"])
    for settings in ({}, {"streaming": True}):
        with pytest.raises(UnreadableImage, match=r"row 2 of split 'train' \(.*none.png\) .* there is no file .*none"):
            load(tmp_path, **settings)
    assert len(load(tmp_path, unreadable="skip").train) == 3


def test_a_missing_mask_of_a_metadata_csv_is_named_with_its_row(tmp_path):
    lines = ["0.png,0.png,a", "1.png,none.png,b", "2.png,,a"]
    folder_with_metadata(tmp_path, lines, "file_name,mask_file_name,label")
    with pytest.raises(UnreadableImage, match=r"the mask of row 1 of split 'train' \(.*none.png\) cannot be read"):
        load(tmp_path)
    assert len(load(tmp_path, unreadable="skip").train) == 2


@pytest.mark.parametrize(
    "name", ["http://127.0.0.1:{port}/0.png", "file://{folder}/0.png", "zip://0.png::{folder}/x.zip"]
)
def test_an_address_in_a_metadata_csv_is_refused(name, tmp_path, server):
    name = name.format(port=server.server_port, folder=tmp_path)
    folder_with_metadata(tmp_path / "data", ["0.png,a", f"{name},b"])
    with pytest.raises(ValueError, match="image folder .*|row 1 of split") as caught:
        load(tmp_path / "data")
    assert name in str(caught.value)
    assert str(caught.value).isprintable()
    assert not server.requests


@pytest.mark.parametrize(
    ("header", "lines"),
    [("path,label", ["0.png,a"]), ("file_name,label", ["0.png,a", "1.png"]), ("file_name,label", [])],
    ids=["no-file_name", "no-label", "no-rows"],
)
def test_a_metadata_csv_that_cannot_be_used_ends_with_a_sentence(header, lines, tmp_path):
    with pytest.raises(ValueError, match="[a-z]") as caught:
        load(folder_with_metadata(tmp_path, lines, header))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("cells", "kind"),
    [([1, 2], "int64"), ([0.5, None], "double"), ([True, False], "bool"), ([["a.png"], ["b.png"]], "List")],
    ids=["numbers", "fractions", "booleans", "lists"],
)
def test_a_column_that_holds_no_paths_is_named(cells, kind, tmp_path):
    datasets.Dataset.from_dict({"image": cells, "label": ["a", "b"]}).to_parquet(str(tmp_path / "table.parquet"))
    with pytest.raises(ValueError, match="column 'image' of split 'train' is of type .*: expected paths or images"):
        load(tmp_path / "table.parquet")


def test_an_empty_cell_is_named_with_its_row(tmp_path):
    with pytest.raises(UnreadableImage, match="row 1 of split 'train' cannot be read: it has no path"):
        load(manifest(tmp_path, "image,label\nimages/0.png,a\n,b\n"))


def test_embedded_images_need_no_file(tmp_path):
    content = paint(tmp_path / "0.png").read_bytes()
    gone = paint(tmp_path / "none.png")
    cells = [{"bytes": content, "path": "somewhere.png"}, {"bytes": None, "path": str(gone)}]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    data = datasets.Dataset.from_dict({"image": cells * 2, "label": ["a", "b"] * 2}, features).select([1, 0, 2, 3])
    check_image_paths(data, Columns("image", "label"), "train", Locations())
    gone.unlink()
    with pytest.raises(UnreadableImage, match="row 0 of split 'train' .*none.png.*1 more are missing"):
        check_image_paths(data, Columns("image", "label"), "train", Locations())
    check_image_paths(data.select([1, 2]), Columns("image", "label"), "train", Locations())


def test_raw_bytes_are_images_too(tmp_path):
    content = paint(tmp_path / "0.png").read_bytes()
    datasets.Dataset.from_dict({"image": [content, content], "label": ["a", "b"]}).to_parquet(
        str(tmp_path / "t.parquet")
    )
    assert load(tmp_path / "t.parquet").train.image(1).size == (12, 10)


UNREADABLE = {
    "latin-1": b"image,label\ncaf\xe9.png,a\n",
    "utf-16": "image,label\na.png,a\n".encode("utf-16"),
    "binary": bytes(range(256)) * 4,
    "ragged": b"image,label\na.png,a\nb.png,b,c,d\n",
    "quote": b'image,label\n"a.png,a\n',
    "semicolons": b"image;label\na.png;a\n",
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_manifest_that_cannot_be_read_ends_with_a_sentence(kind, tmp_path):
    (tmp_path / "table.csv").write_bytes(UNREADABLE[kind])
    with pytest.raises(ValueError, match="table.csv|no column 'image'"):
        load(tmp_path / "table.csv")


def test_a_pipe_is_refused_at_once(tmp_path):
    paint(tmp_path / "0.png")
    os.mkfifo(tmp_path / "pipe.png")
    path = table(tmp_path, ["0.png", "0.png", "pipe.png"])
    with pytest.raises(UnreadableImage, match="row 2 of split 'train'"):
        load(path)
    assert len(load(path, unreadable="skip").train) == 2


def test_locations_allow_nothing_but_local_files_by_default():
    with pytest.raises(ValueError, match=REFUSAL):
        Locations().open({"path": "https://example.org/x.png"}, "row 0")
    assert Locations().open({"bytes": b"x", "path": "https://example.org/x.png"}, "row 0").read() == b"x"
    assert isinstance(Locations().open(b"x", "row 0"), io.BytesIO)


def test_paths_and_boxes_are_checked_before_they_are_needed(tmp_path):
    header, rows = "image,label,mask,boxes\n", ["images/1.png,a,,\n", "images/2.png,b,,\n"]
    load(manifest(tmp_path, header + "".join(rows)))
    for cells, message in {
        "none.png,a,,": r"row 2 of split 'train' \(none.png\) cannot be read: there is no file .*/none.png",
        "images/3.png,a,none.png,": "row 2 of .* cannot be read: there is no file .*/none.png",
        'images/3.png,a,,"[[0, 0, 4]]"': r"boxes of row 2 .* are '\[\[0, 0, 4\]\]': expected",
        'images/3.png,a,,"[[0, 5, 4, 5]]"': r"row 2 of split 'train' \(images/3.png\): \[0, 5, 4, 5\] is not a box",
    }.items():
        path = manifest(tmp_path, header + "".join([*rows, cells + "\n"]))
        with pytest.raises(ValueError, match=message):
            load(path)
    path.write_text(header + "".join([*rows, "none.png,a,,\n", "gone.png,a,,\n"]))
    with pytest.raises(UnreadableImage, match="no file .*/none.png \\(and 1 more are missing\\)"):
        load(path)
    assert len(load(path, unreadable="skip").train) == 2
