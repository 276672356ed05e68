"""Two processes learn what one does: gradients are summed and divided by the learned tokens of all."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from idefics.train.checkpoints import find_checkpoint
from models import tiny

PROGRAM = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from idefics.train import trainee as loading
from idefics.models import read_checkpoint
from idefics.train.processes import join_processes
from idefics.train.settings import TrainSettings
from idefics.train.trainee import load_trainee
from idefics.train.trainer import Trainer
from train.row_makers import Rows, make_row

folder, out, stop_after, breaks = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "nan"
settings = TrainSettings(data="x", model=str(folder), out=out, rank=2, steps=5, batch_size=3, learning_rate=0.01)
# In float64, where the order of sums changes nothing that AdamW could enlarge.
loading._with_fast_gradients = lambda choice, device: choice  # those of oneDNN are float32
torch.Tensor.float = torch.Tensor.double
trainee = load_trainee(read_checkpoint(folder), settings)
trainee.model.double()
scenes = ("tt1ttt", "1ttttttttt", "ttttt", "t1t1tttttttttttttttt")
rows = Rows(make_row(trainee.model, scene, 1 + number) for number, scene in enumerate(scenes))
if breaks:
    rows[1].read_pictures()[0].frames[0][:] = float("nan")
processes = join_processes()
trainer = Trainer(trainee.model, trainee.learned, rows, settings, out, (), processes)
losses = []

def after_step():
    if trainer.step == stop_after:
        trainer.stops = processes.rank == processes.count - 1
    if trainer.step == trainer.num_steps:
        losses.append(trainer.validate(rows).loss)

trainer.train(after_step)
trainer.save()
print(trainer.step, *losses)
"""


def start(count, folder, out, stop_after=0, breaks="no"):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    tests = str(Path(__file__).parents[1])
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, tests, folder, out, str(stop_after), breaks],
            env={**os.environ, **names, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    return [(*program.communicate(timeout=120), program.returncode) for program in programs]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    pytest.importorskip("accelerate")
    folder = tiny.write_checkpoint(tmp_path / "model", tiny.IDEFICS3)
    outputs = {}
    for count in (1, 2):
        results = start(count, folder, tmp_path / str(count))
        assert all(code == 0 for *_, code in results), results
        outputs[count] = [out.split() for out, *_ in results]
    losses = {float(loss) for count in (1, 2) for _, loss in outputs[count]}
    assert max(losses) == pytest.approx(min(losses), rel=1e-9)
    one, two = (load_file(find_checkpoint(tmp_path / str(count)) / "learned.safetensors") for count in (1, 2))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
def test_all_processes_stop_together(tmp_path):
    pytest.importorskip("accelerate")
    folder = tiny.write_checkpoint(tmp_path / "model", tiny.IDEFICS3)
    stopped = start(2, folder, tmp_path / "out", stop_after=2)
    assert [(out.strip(), code) for out, _, code in stopped] == [("3", 0), ("3", 0)]
    failed = start(2, folder, tmp_path / "nan", breaks="nan")
    assert [code for *_, code in failed] == [1, 1]
    errors = [error.strip().splitlines()[-1] for _, error, _ in failed]
    assert sum("the loss of 1ttttttttt is nan" in error for error in errors) == 1
    assert sum("the loss of a row of another process is nan" in error for error in errors) == 1
