#!/usr/bin/env bash
# torch==2.13.0 and pandas==2.3.3 with onnxruntime==1.32.0: in the exported model an unknown item is the last one.
#
# Expected: pandas gives ids it does not know the code -1, and nn.Embedding refuses -1 with an IndexError, as does the
# program of torch.export. A model that refuses an id refuses it in ONNX too; ids too large are refused there.
# Seen: torch.onnx.export writes the table as Gather, which by its specification counts negative codes from the end, and
# adds no check. ONNX Runtime answers -1 with the row of the last item, without a word.
# Consequence: the items that came last have the last rows. A user who clicked something new to the model (an item of
# today, a typing error) is served as one who clicked the newest item of the table, and only where the model is served:
# tests in torch raise. A padding row at 0 does not help, since -1 never reaches it.
# Way out: codes + 1 with a row 0 for what is unknown, or ids.clamp(min=0) inside the exported module.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --no-compile --disable-pip-version-check \
  torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 pandas==2.3.3 numpy==2.4.6
cd "$folder"
env/bin/python -W ignore - 2> messages <<'PYTHON' || { cat messages >&2; exit 1; }
import sys

import onnxruntime
import pandas as pd
import torch
from torch import nn

catalogue = pd.Index(["song 1", "song 2", "song 3", "song of today"])
torch.manual_seed(0)


class User(nn.Module):
    """The mean of what was clicked."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(len(catalogue), 3)

    def forward(self, clicked: torch.Tensor) -> torch.Tensor:
        return self.items(clicked).mean(0)


user = User().eval()
example = (torch.tensor([0, 1]),)
program = torch.export.export(user, example).module()
torch.onnx.export(user, example, "user.onnx", dynamo=True, verbose=False)
session = onnxruntime.InferenceSession("user.onnx", providers=["CPUExecutionProvider"])
served = {
    "torch": lambda codes: user(torch.tensor(codes)),
    "torch.export": lambda codes: program(torch.tensor(codes)),
    "ONNX Runtime": lambda codes: torch.tensor(session.run(None, {session.get_inputs()[0].name: codes})[0]),
}
as_if = user(torch.tensor([0, 3])).detach()  # song 1 and the song of today
seen = {}
for name, answer in served.items():
    for clicked in (["song 1", "song 2"], ["song 1", "song 9"]):
        codes = catalogue.get_indexer(clicked)
        try:
            vector = answer(codes).detach()
            seen[name, clicked[1]] = "as song of today" if torch.allclose(vector, as_if) else "another vector"
        except IndexError:
            seen[name, clicked[1]] = "IndexError"
        print(f"{name:13} {clicked} {codes.tolist()!s:8} {seen[name, clicked[1]]}")
known = [seen[name, "song 2"] for name in served]
unknown = [seen[name, "song 9"] for name in served]
if known != ["another vector"] * 3 or unknown != ["IndexError", "IndexError", "as song of today"]:
    print("changed:", seen)
    sys.exit(1)
PYTHON
