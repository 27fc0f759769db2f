"""What processes send each other is right whatever the order in which a tensor lies in memory; two over gloo."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
SCRIPT = """
import torch
from metarec import distributed

distributed.start("cpu")
first = distributed.is_first()
want = torch.arange(12.0).view(3, 4)
module = torch.nn.Linear(4, 3)
module.register_buffer("gaps", torch.zeros(4, 6)[:, ::2])
module.weight.data = want.t().contiguous().t() if first else torch.zeros(3, 4)  # column-major in the first alone
module.gaps.copy_(want.t() if first else -want.t())
distributed.copy_first(module)
assert torch.equal(module.weight.data, want), module.weight
assert torch.equal(module.gaps, want.t()), module.gaps
assert torch.equal(distributed.total(want.t() if first else want.t().contiguous()), 2 * want.t())
distributed.leave()
"""


def test_columns_first_and_gaps(tmp_path):
    script = tmp_path / "layout.py"
    script.write_text(SCRIPT, encoding="utf-8")
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*TORCHRUN, "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, env=here, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
