"""`Trainer` in two processes, and the memory of its evaluation."""

import sys
from pathlib import Path

import pytest
import torch
from helpers.processes import free_port
from helpers.trainer import CLASS_COUNT, EXACT, MAP_SIDE, SCORES, SETTINGS, images_of, launch, make, state, trainer_of
from helpers.training import equal, largest_difference
from helpers.warm import warm_python

from softcam_hub.training.trainer import ExplanationCallback

TWO_RANKS = """
import json, os, sys
from pathlib import Path
import torch, torch.distributed as dist
from helpers.trainer import EXACT, SETTINGS, state, trainer_of
from softcam_hub.training import ExplanationCallback

out = Path(sys.argv[1])
for name, make in SETTINGS.items():
    options = {**EXACT, "max_steps": 4, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 2}
    trainer = trainer_of(make(), out / "run", ddp_find_unused_parameters=False, **options)
    assert trainer.args.world_size == dist.get_world_size() == trainer.accelerator.num_processes == 2
    trainer.add_callback(ExplanationCallback(trainer))
    trainer.train()
    metrics = trainer.evaluate()
    torch.save((state(trainer.model), metrics), out / f"{name}-{dist.get_rank()}.pt")
    dist.barrier()
print(f"rank {dist.get_rank()} of {dist.get_world_size()} is done", flush=True)
sys.stderr.flush()
dist.barrier()
os._exit(0)  # gloo sometimes aborts on the way out
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Train every setting in two processes, and return the folder of their weights and metrics."""
    out = tmp_path_factory.mktemp("two_ranks")
    (out / "script.py").write_text(TWO_RANKS)
    how = [
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", *how, "--main_process_port", str(free_port())]
    done = launch([*accelerate, str(out / "script.py"), str(out)], ACCELERATE_USE_CPU="true")
    assert all(f"rank {rank} of 2 is done" in done.stdout for rank in (0, 1)), done.stderr[-5000:]
    assert "find_unused_parameters" not in done.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_equal_one_with_twice_the_batch(name, two_ranks, tmp_path):
    weights, metrics = zip(*(torch.load(two_ranks / f"{name}-{rank}.pt") for rank in (0, 1)), strict=True)
    assert equal(*weights)
    start = state(SETTINGS[name]())
    trainer = trainer_of(SETTINGS[name](), tmp_path, max_steps=4, **EXACT)
    trainer.add_callback(ExplanationCallback(trainer))
    trainer.train()
    expected = state(trainer.model)
    assert largest_difference(weights[0], expected) < 1e-3 * largest_difference(start, expected)
    one = trainer.evaluate()
    for score_name in SCORES:
        found = metrics[0][f"eval_{score_name}"]
        assert found == metrics[1][f"eval_{score_name}"]
        assert found == pytest.approx(one[f"eval_{score_name}"], rel=1e-4, abs=1e-5)


MEASURE = """
import sys
from helpers.trainer import growth
print("growth", growth(sys.argv[1], sys.argv[2].split(), sys.argv[3]))
"""


def test_predictions_are_logits_alone(tmp_path):
    trainer = trainer_of(make("cape", output_hidden_states=True), tmp_path)
    found = trainer.predict(trainer.eval_dataset).predictions
    assert torch.allclose(torch.tensor(found), trainer.model(images_of(trainer.eval_dataset)).logits, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize(("method", "ignored"), [("evaluate", "maps"), ("predict", "maps"), ("evaluate", "")])
def test_evaluation_keeps_logits_and_no_maps(method, ignored, tmp_path):
    done = warm_python().run("-c", MEASURE, method, ignored, tmp_path, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    found = int(done.stdout.split("growth")[1])
    logits = 1500 * CLASS_COUNT * 4
    if ignored:
        assert found < 8 * logits, "copies while the list grows, and the allocator's leeway, but no maps"
    else:
        assert found > 0.9 * MAP_SIDE**2 * logits, "the same measure sees maps that are kept"
