"""Commands that are killed with `kill -9` at random moments and run again, beside an undisturbed run of each.

`run_killed(scenario, kills, place)` does it for one command and returns the row that `make kills` writes.

- A moment is a number of changes of the watched folder, drawn with a fixed seed from the first half of those that the
  undisturbed run makes. Half of the kills follow a change at once, which is often in the middle of writing, the others
  after a pause of up to 50 ms.
- A run that ends before it could be killed is compared too. Its folder is deleted, and the next run begins anew.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from helpers.benchmark import DATA, run_benchmark, save_models, vanilla_model
from helpers.outputs import content
from helpers.processes import finish, kill, start
from helpers.training import settings
from softcam_hub.cli import main
from softcam_hub.output_folder import RECORD
from softcam_hub.training import run
from softcam_hub.training.reporting import read_log

NOTES = "notes.txt"
"""File of a user in the output folder of a killed run."""


class Scenario(NamedTuple):
    """A command with its settings.

    Args:
        command: Name of the command, as shown in the table.
        configuration: Settings of the command in words.
        processes: Number of processes that run the command together.
        begin: Function of folders with inputs and output that starts the command and returns its processes.
        read: Function of the output folder that returns the results to compare, by name.
        watched: Folder below the output folder whose changes are counted.
    """

    command: str
    configuration: str
    processes: int
    begin: Callable[[Path, Path], list[Any]]
    read: Callable[[Path], dict[str, Any]] = content
    watched: str = "."


# --- commands --------------------------------------------------------------------------------------------------------

RANDOM = {
    "mode": "from-scratch",
    "model_args": "output_stride=8 drop_rate=0.3 drop_path_rate=0.2",
    "color_jitter": 0.3,
    "erase": 0.3,
    "batch_size": 4,
    "epochs": 4,
    "checkpoint_steps": 2,
}
ADAM = {"optimizer": "adamw", "lr": 3e-3}
TRAININGS = {
    "AdamW, average, accumulation": (1, {**ADAM, "ema": 0.7, "accumulation": 2}),
    "loading workers": (1, {**ADAM, "batch_size": 8, "workers": 2, "balance": "sampling"}),
    "average, clipped gradients": (2, {"ema": 0.7, "clip_grad": 1.0}),
    "accumulation, loading workers": (2, {**ADAM, "batch_size": 2, "accumulation": 2, "workers": 1}),
    "stream, loading workers": (2, {"streaming": True, "steps_per_epoch": 6, "workers": 2}),
}
FROZEN = {"model": "softcam_test_resnet", "freeze_backbone": True, "augment": False, "lr": 1.0, "batch_size": 2}
FROZEN |= {"epochs": 1}
SHARDS = {"batch_size": 2, "shard_size": 1, "explainers": ["cape", "cam", "random"], "per_image": True, **DATA}
PICTURES = 8


def train(inputs, output, processes, options):
    return start(run, settings(output, **options, resume=output.is_dir()), processes=processes)


def measure(inputs, output, processes):
    models = inputs / "models"
    if not models.exists():
        save_models(vanilla_model(), models)
    return start(run_benchmark, models / "cape", models / "vanilla", output, SHARDS, processes, processes=processes)


def explain(inputs, output):
    photos = inputs / "photos"
    if not photos.exists():
        photos.mkdir(parents=True)
        for number in range(PICTURES):
            Image.effect_noise((64, 64), 40 + number).convert("RGB").save(photos / f"{number}.png")
    return start(_explain, photos, output)


def _explain(photos, output):
    assert main(["explain", str(photos), "--output", str(output), "--top-k", "1"]) == 0


def trained(output):
    """Weights, cached features, metrics but for the time that they took, log lines, and names of checkpoints."""
    files = content(output)
    binary = (".safetensors", ".bin")
    parts = ("model/", "vanilla/", "features/")
    found = {name: data for name, data in files.items() if name.startswith(parts) and name.endswith(binary)}
    found = {name: data for name, data in found.items() if ".unfinished" not in name}
    if NOTES in files:
        found[NOTES] = files[NOTES]
    if "metrics.json" in files:
        found["metrics.json"] = {**json.loads(files["metrics.json"]), "seconds": 0}
    if "log.jsonl" in files:
        found["log.jsonl"] = read_log(output / "log.jsonl")
    places = (output / "checkpoints").glob("*")
    return {**found, **{f"checkpoints/{path.name}": None for path in places}}


SCENARIOS = [
    *(
        Scenario(
            "training",
            name,
            processes,
            partial(train, processes=processes, options={**RANDOM, **options}),
            trained,
        )
        for name, (processes, options) in TRAININGS.items()
    ),
    *(
        Scenario(
            "feature cache",
            "training with a frozen backbone",
            processes,
            partial(train, processes=processes, options=FROZEN),
            trained,
            "features",
        )
        for processes in (1, 2)
    ),
    *(
        Scenario("benchmark", "three explainers", processes, partial(measure, processes=processes))
        for processes in (1, 2)
    ),
    Scenario("explain", f"{PICTURES} pictures", 1, explain),
]


# --- kills -----------------------------------------------------------------------------------------------------------


def run_killed(scenario: Scenario, kills: int, place: Path) -> dict[str, Any]:
    """Kill a command that often, let it end, and compare its output with that of an undisturbed run.

    Args:
        scenario: Command to be killed.
        kills: Number of kills.
        place: Empty folder for inputs and outputs.

    Returns:
        Row with the number of kills, `identical` (whether every output has the bits of the undisturbed run), and
        `lost_files`: the number of files that are missing at the end, of the command or of the user.
    """
    began, inputs, whole, broken = time.monotonic(), place / "inputs", place / "whole", place / "broken"
    ranks = scenario.begin(inputs, whole)
    changes = observe(whole / scenario.watched, ranks)
    finish(ranks)
    expected, comparisons = scenario.read(whole), []
    chance = random.Random(f"{scenario.command}, {scenario.configuration}, {scenario.processes}")
    done, noted = 0, False
    while done < kills:
        ranks = scenario.begin(inputs, broken)
        observe(broken / scenario.watched, ranks, until=chance.randint(1, max(1, changes // 2)))
        time.sleep(chance.choice([0.0, chance.uniform(0, 0.05)]))
        if killed(ranks):
            done += 1
            noted = leave_notes(broken) or noted
        elif not any(process.exitcode for process in ranks):
            comparisons.append(compare(scenario.read(broken), expected, noted))
            shutil.rmtree(broken)
            noted = False
    finish(scenario.begin(inputs, broken))
    comparisons.append(compare(scenario.read(broken), expected, noted))
    return {
        "command": scenario.command,
        "configuration": scenario.configuration,
        "processes": scenario.processes,
        "kills": done,
        "compared": len(comparisons),
        "identical": all(identical for identical, _ in comparisons),
        "lost_files": sum(lost for _, lost in comparisons),
        "seconds": round(time.monotonic() - began),
    }


def observe(folder, ranks, until=None):
    """Count the changes of a folder while all processes run, at most `until`."""
    seen, before = 0, listing(folder)
    while seen != until and all(process.is_alive() for process in ranks):
        now = listing(folder)
        seen += now != before
        before = now
        time.sleep(0.001)
    return seen


def listing(folder):
    """Size and time of every file below a folder; a file that vanishes meanwhile is left out."""
    found = {}
    for place, _, names in os.walk(folder):
        for path in (os.path.join(place, name) for name in names):
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue
            found[path] = (status.st_size, status.st_mtime_ns)
    return found


def killed(ranks):
    """Kill the processes that still run; tell whether any did. None may have failed by itself."""
    if not all(process.is_alive() for process in ranks):
        finish(ranks)
        return False
    kill(ranks)
    codes = {process.exitcode for process in ranks}
    assert codes <= {0, -signal.SIGKILL}
    return codes == {-signal.SIGKILL}


def leave_notes(output):
    """Put a file of a user beside the output once the folder has its record, and tell whether it has."""
    recorded = (output / RECORD).exists()
    if recorded and not (output / NOTES).exists():
        (output / NOTES).write_text("mine")
    return recorded


def compare(found, expected, noted):
    """Tell whether all results are equal, and how many files of the command and of the user are missing."""
    if noted:
        expected = {**expected, NOTES: b"mine"}
    return found == expected, len(expected.keys() - found.keys())
