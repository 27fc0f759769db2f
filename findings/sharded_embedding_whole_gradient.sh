#!/usr/bin/env bash
# torch==2.13.0: the gradient of an embedding whose rows are sharded (DTensor, Shard(0)) is the whole table in each process.
#
# Expected: of a table whose rows lie in n processes, each makes the gradient of its own rows, I / n of them.
# Seen: the lookup is sharded, but embedding_dense_backward has no strategy for rows: each process gets a gradient of all
# I rows, Replicate() in place of Shard(0). With plain tensors in between (to_local, from_local) it is I / n rows.
# Consequence: item tables are sharded because they do not fit one GPU, and their gradient must fit each: a row table of
# 100 million items at width 64 wants 25.6 GB a GPU for it, however many there are; time for it is not divided either.
# Way out: look up the own rows by F.embedding on weight.to_local(), 0 for others, and make that DTensor's Partial().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --no-compile --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$folder/sharded.py" <<'PYTHON'
import sys

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import functional as F

ROWS = 1_000_000
distributed.init_process_group("gloo")
rank, each = distributed.get_rank(), ROWS // 2
mesh = init_device_mesh("cpu", (2,))
own = torch.randn(each, 4, generator=torch.Generator().manual_seed(rank))
codes = torch.tensor([3, 7, each + 3, 7])


def builtin(weight):
    return F.embedding(DTensor.from_local(codes, mesh, [Replicate()]), weight)


def by_hand(weight):
    rows, at = weight.to_local(), codes - rank * each
    here = (at >= 0) & (at < each)
    return DTensor.from_local(F.embedding(at * here, rows) * here.unsqueeze(-1), mesh, [Partial()])


stated = {"F.embedding": (1_000_000, "Replicate"), "own rows": (500_000, "Shard")}
seen, vectors = {}, []
for name, look in (("F.embedding", builtin), ("own rows", by_hand)):
    weight = nn.Parameter(DTensor.from_local(own.clone(), mesh, [Shard(0)]))
    found = look(weight).redistribute(placements=[Replicate()]).to_local()
    found.square().sum().backward()
    vectors.append((found.detach(), weight.grad.full_tensor()))
    seen[name] = len(weight.grad.to_local()), type(weight.grad.placements[0]).__name__
    if rank == 0:
        print(f"{name:12} gradient in a process: {seen[name][0]:9,} of {ROWS:,} rows, {seen[name][1]}")
assert all(torch.equal(a, b) for a, b in zip(*vectors, strict=True))
distributed.barrier()
distributed.destroy_process_group()
if seen != stated:
    print("changed:", seen)
    sys.exit(1)
PYTHON
"$folder/env/bin/python" -m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node 2 "$folder/sharded.py"
