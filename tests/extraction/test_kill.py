"""Killed without warning at any moment, an extraction continues to the same bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# one process loads the model, and forks a child for every extraction: the children are killed
CODE = """
import os, random, signal, sys, time
from pathlib import Path
import pandas as pd
from neurosae.dictionary.record import neuron_dictionary
from neurosae.extraction import run, shard
from neurosae.extraction.model import load_model
run.SHARD = shard.SHARD = 3
toy = dict(n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=96, d_vocab=257, act_fn="gelu", seed=0)
rows = [{"text": f"The key number {i} is old", "item": f"i{i}", "frame": "f", "split": "test"} for i in range(60)]
stimuli = pd.DataFrame(rows, index=[f"s{i}" for i in range(60)])
stimuli["a_start"], stimuli["a_end"] = 4, 7
stimuli["b_start"], stimuli["b_end"] = stimuli["text"].str.len() - 3, stimuli["text"].str.len()
sites = {name: neuron_dictionary(f"blocks.{i}.hook_resid_post", 16) for i, name in enumerate(["early", "late"])}
model = load_model(toy, device="cpu")
folder = Path(sys.argv[1])

def child(name):
    pid = os.fork()
    if pid == 0:
        run.extract(stimuli, model, sites, store=folder / name)
        os._exit(0)
    return pid

begun = time.monotonic()
os.waitpid(child("whole"), 0)
took = time.monotonic() - begun
draw, unfinished = random.Random(0), 0
for _ in range(6):
    pid = child("killed")
    time.sleep(draw.uniform(0.05, 0.5) * took)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    unfinished += not list((folder / "killed").rglob("key.json"))
assert os.waitpid(child("killed"), 0)[1] == 0
print(unfinished, flush=True)
"""


def arrays(folder: Path) -> dict[str, str]:
    """Hash of every stored array; the record beside them holds times."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and ".zarr" in str(f) and "neurosae" not in f.parts]
    kept = [f for f in files if f.name != "zarr.json" or f.parent.suffix != ".zarr"]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in kept}


def test_kill_minus_nine_at_random_moments(tmp_path):
    """Killed six times, then run to its end: byte-identical arrays, and nothing half-written is left."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 1  # some were killed before they had finished
    whole, killed = arrays(tmp_path / "whole"), arrays(tmp_path / "killed")
    assert len(whole) > 20
    assert whole == killed
    assert not [*(tmp_path / "killed").rglob("parts"), *(tmp_path / "killed").rglob(".tmp-*")]
