"""`import softcam_hub` leaves transformers alone, and models are registered with it in whatever order programs import."""

import ast
import importlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from softcam_hub import deferred_imports, public
from softcam_hub.deferred_imports import AfterImport, run_after_imports

ROOT = Path(__file__).parents[1]


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_timm_models_are_made_explained_and_converted_without_transformers():
    program = """
import sys, softcam_hub, timm, torch
assert "accelerate" not in sys.modules
model = timm.create_model("cape_test_resnet", num_classes=3)
model.explain(torch.rand(1, 3, 96, 96)).overlay()
softcam_hub.explain(model, torch.rand(3, 96, 96))
softcam_hub.create_explainer("grad-cam", timm.create_model("test_resnet"))
softcam_hub.convert(timm.create_model("test_resnet"), "softcam")
print(*{"transformers", "accelerate", "datasets", "pandas", "matplotlib", "softcam_hub.models.pretrained"} & {*sys.modules})
"""
    assert run(program) == []


ORDERS = {
    "ours first": "import softcam_hub; from transformers import AutoModelForImageClassification as Auto",
    "transformers first": "from transformers import AutoModelForImageClassification as Auto; import softcam_hub",
    "a model of ours first": "from softcam_hub import CAPEModel; from transformers import AutoModelForImageClassification as Auto",
    "the training loop first": "import softcam_hub.training; from transformers import AutoModelForImageClassification as Auto",
    "only the configuration": "import softcam_hub; from transformers import AutoConfig as Auto",
    "only the image processor": "import softcam_hub; from transformers import AutoImageProcessor as Auto",
    "only the pipeline": "import softcam_hub; from transformers import pipeline; from functools import partial; "
    "Auto = type('', (), {'from_pretrained': partial(pipeline, 'image-explanation')})",
}
LOADED = {
    "only the configuration": "CAPEConfig",
    "only the image processor": "TimmWrapperImageProcessor",
    "only the pipeline": "ImageExplanationPipeline",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_transformers_knows_our_models_in_every_order_of_imports(order):
    program = f"{ORDERS[order]}; print(type(Auto.from_pretrained(softcam_hub.CAPE_LESIONS)).__name__)"
    assert run("import softcam_hub; " * (order != "transformers first") + program) == [
        LOADED.get(order, "CAPEForImageClassification")
    ]


def test_the_table_of_public_names_says_what_type_checkers_read():
    statements = [
        node for node in ast.walk(ast.parse(Path(public.__file__).read_text())) if isinstance(node, ast.ImportFrom)
    ]
    read = {}
    for node in statements:
        if node.level == 1:
            read.setdefault(node.module, []).extend(alias.name for alias in node.names)
    assert {module: sorted(names) for module, names in public.MODULES.items()} == {
        module: sorted(names) for module, names in read.items()
    }


def test_names_that_the_package_does_not_have_are_no_attributes():
    import softcam_hub

    assert not hasattr(softcam_hub, "nonesuch")
    with pytest.raises(AttributeError, match=r"^module 'softcam_hub' has no attribute 'nonesuch'$"):
        _ = softcam_hub.nonesuch
    assert {"convert", "CAPE_LESIONS"} < set(dir(softcam_hub))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write modules of a package called `stranger`, which is forgotten at the end."""
    folder = tmp_path / "stranger"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    waiting = list(deferred_imports._waiting)
    yield lambda name, code: (folder / f"{name}.py").write_text(code)
    deferred_imports._waiting[:] = waiting
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger"]:
        del sys.modules[name]


def test_an_action_runs_once_at_the_end_of_an_import_or_at_once(package):
    package("core", "value = 1\ndone = []")

    def act():
        core = sys.modules["stranger.core"]
        core.done.append(core.value)

    run_after_imports([AfterImport("stranger.core", act)])
    core = importlib.import_module("stranger.core")
    assert core.done == [1]  # the module is whole
    assert type(core.__loader__).__name__ == type(core.__spec__.loader).__name__ == "SourceFileLoader"
    importlib.reload(core)
    assert core.done == []
    run_after_imports([AfterImport("stranger.core", act)])
    assert core.done == [1]


def test_an_action_waits_while_what_it_needs_is_half_imported(package):
    package("base", "import stranger.auto\nclass Base: pass")
    package("auto", "")
    seen = []

    def act():
        from stranger.base import Base

        seen.append(Base.__name__)

    run_after_imports([AfterImport("stranger.auto", act, needs=["stranger.base"])])
    importlib.import_module("stranger.base")  # imports auto before it has Base
    assert seen == ["Base"]


def test_an_action_imports_what_it_needs(package):
    package("base", "class Base: pass")
    package("auto", "")
    seen = []
    act = AfterImport(
        "stranger.auto", lambda: seen.append(importlib.import_module("stranger.base").Base), ["stranger.base"]
    )
    run_after_imports([act])
    importlib.import_module("stranger.auto")
    assert [each.__name__ for each in seen] == ["Base"]


def test_an_action_that_fails_fails_the_import_and_is_tried_again(package):
    package("core", "")
    tries = []

    def act():
        tries.append(1)
        if len(tries) == 1:
            raise ImportError("not yet")

    run_after_imports([AfterImport("stranger.core", act)])
    with pytest.raises(ImportError, match="not yet"):
        importlib.import_module("stranger.core")
    importlib.import_module("stranger.core")
    assert tries == [1, 1]


def test_a_module_that_another_thread_is_importing_is_waited_for(package):
    package("core", "import time\nstarted = True\ntime.sleep(1)\nvalue = 1")
    seen = []
    other = threading.Thread(target=importlib.import_module, args=["stranger.core"])
    other.start()
    while not hasattr(sys.modules.get("stranger.core"), "started"):
        time.sleep(0.01)
    run_after_imports([AfterImport("stranger.core", lambda: seen.append(sys.modules["stranger.core"].value))])
    other.join()
    assert seen == [1]


class Old:
    """A finder of the kind that Python 3.11 still takes."""

    def find_module(self, *_):
        return None


def test_finders_that_ask_one_another_find_a_module(package, monkeypatch):
    package("core", "value = 1")
    seen = []
    monkeypatch.setattr(sys, "meta_path", [deferred_imports._Finder(), Old(), *sys.meta_path])
    run_after_imports([AfterImport("stranger.core", lambda: seen.append(1))])
    assert importlib.util.find_spec("stranger.core").loader.get_source("stranger.core") == "value = 1"
    assert importlib.import_module("stranger.core").value == 1
    assert seen == [1]


@pytest.mark.slow
def test_a_package_that_is_imported_anew_registers_its_own_classes():
    program = """
import sys, softcam_hub
for name in [name for name in sys.modules if name.partition(".")[0] == "softcam_hub"]:
    del sys.modules[name]
import softcam_hub
from transformers import AutoConfig
print(type(AutoConfig.from_pretrained(softcam_hub.CAPE_LESIONS)) is softcam_hub.CAPEConfig)
"""
    assert run(program) == ["True"]


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.5, 1.5, 3])
def test_models_are_registered_while_another_thread_imports_transformers(delay):
    program = f"""
import threading, time
def other():
    from transformers import AutoModelForImageClassification, AutoImageProcessor
thread = threading.Thread(target=other)
thread.start()
time.sleep({delay})
import softcam_hub
thread.join()
from transformers import AutoImageProcessor, AutoModelForImageClassification
model = AutoModelForImageClassification.from_config(softcam_hub.SoftCAMConfig(architecture="softcam_test_vit", num_labels=5))
print(type(model).__name__, type(AutoImageProcessor.from_pretrained(softcam_hub.CAPE_LESIONS)).__name__)
"""
    assert run(program) == ["SoftCAMForImageClassification", "TimmWrapperImageProcessor"]
