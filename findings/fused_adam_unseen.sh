#!/usr/bin/env bash
# torch==2.13.0 on a CPU: a step of Adam(fused=True) leaves the version counters of the weights as they were.
#
# Expected: whatever changes a tensor in place raises its `_version`, by which autograd knows that a saved tensor is stale.
# Seen: plain and foreach Adam raise it by one a step, a fused step by nothing. So a backward pass through weights that
# were moved in between gives wrong gradients without the error that the other two give.
# Consequence: tables of items that are kept for serving and rebuilt when a weight's version moves stay those of before
# the training; what tells trained weights from fresh ones by their versions takes the former for the latter.
# Way out: torch.autograd.graph.increment_version(parameters) after each fused step.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --no-compile --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import sys

import torch

stated = {"plain": (1, "refused"), "foreach": (1, "refused"), "fused": (0, "gradient 6.0 where 4.0 is right")}
seen = {}
for how in stated:
    weight = torch.nn.Parameter(torch.tensor(2.0))
    weight.grad = torch.tensor(-1.0)
    optimizer = torch.optim.Adam([weight], lr=1.0, foreach=how == "foreach", fused=how == "fused")
    before, loss = weight._version, weight.square()
    optimizer.step()  # 2 becomes 3, while the loss remembers the weight
    raised = weight._version - before
    try:
        (gradient,) = torch.autograd.grad(loss, weight)
        told = f"gradient {gradient.item():.1f} where 4.0 is right"
    except RuntimeError:
        told = "refused"
    seen[how] = raised, told
    print(f"{how:8} version +{raised}, backward through the moved weight: {told}")
changed = {how: seen[how] for how in stated if seen[how] != stated[how]}
if changed:
    print("changed:", changed)
    sys.exit(1)
PYTHON
