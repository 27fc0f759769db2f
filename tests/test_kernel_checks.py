"""The compiled kernel refuses what would make it read or write beyond what it was given, and says which field."""

from __future__ import annotations

import ctypes

import pytest
import torch

from metarec.meta import library
from metarec.meta.library import BACKWARD, DESCEND, FORWARD, LEARN, STEP, VALUES, Pass
from optional import needs_kernel

pytestmark = needs_kernel

B, L, S, D, N = 3, 5, 2, 6, 3
SIZES = {"users": B, "length": L, "asked": S, "dim": D, "heads": 2, "layers": 2, "feedforward": 7, "positions": 6}
FLOATS = {
    "x": (B, L, D), "bias": (B, L, L), "state": (B, S, D), "dstate": (B, S, D), "dx": (B, L, D), "dbias": (B, L, L),
    "vectors": (B, S, N, D), "weight": (B, S), "dvectors": (B, S, N, D), "losses": (B,),
}  # fmt: skip
NEEDED = {
    FORWARD: "drop eps weights x keep bias at saved state",
    BACKWARD: "drop eps weights moved keep bias at saved dstate dx dbias",
    STEP: "drop eps weights moved keep bias at saved dstate",
    DESCEND: "drop eps weights moved x keep bias at saved vectors weight",
    LEARN: "drop eps moved x keep bias at saved vectors weight dvectors losses dx dbias",
    VALUES: "drop eps weights x keep bias at saved state",
}


def task(what: int, dtype: torch.dtype = torch.float64) -> Pass:
    """A pass that is whole."""
    made = Pass(torch.zeros((), dtype=dtype), {**SIZES, "threads": 2}, [0.1] * 3, [1e-5] * 5)
    row, saved = made.sizes()
    per = 2 if what in (BACKWARD, LEARN) else B
    given = {name: torch.zeros(shape, dtype=dtype) for name, shape in FLOATS.items()}
    given |= {"weights": torch.zeros(B, row, dtype=dtype), "moved": torch.zeros(per, row, dtype=dtype)}
    given["saved"] = torch.zeros(B if what < DESCEND else 2, saved, dtype=dtype)
    given["keep"], given["at"] = torch.ones(B, L, dtype=torch.bool), torch.zeros(B, S, dtype=torch.int64)
    made.point(**{name: tensor for name, tensor in given.items() if name in NEEDED[what].split()})
    made.set(what=what, stride=row, steps=1, compared=N, rate=-0.1)
    return made


def ready(what: int, dtype: torch.dtype = torch.float64) -> tuple[Pass, Pass]:
    """A pass to run, and the part of it that is looked at: of one that learns, the query's."""
    if what != LEARN:
        made = task(what, dtype)
        return made, made
    first, query = task(DESCEND, dtype), task(LEARN, dtype)
    first.followed(query)
    return first, query


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("what", NEEDED)
def test_a_whole_pass_runs_and_one_number_less_is_refused(what, dtype):
    ready(what, dtype)[0].run()
    for field in NEEDED[what].split():
        made, part = ready(what, dtype)
        part.job.count[library._PLACE[field]] -= 1
        of = "the query's " if what == LEARN else ""
        with pytest.raises(ValueError, match=rf"kernel: {of}{field} has only \d+ numbers for .*'users': 3"):
            made.run()


@pytest.mark.parametrize("what", NEEDED)
def test_an_address_that_is_needed_is_not_null(what):
    for field in NEEDED[what].split():
        made, part = ready(what)
        setattr(part.job, field, None)
        part.job.count[library._PLACE[field]] = 0
        if field in ("bias", "dx", "dbias") or (field == "moved" and what in (BACKWARD, LEARN)):
            made.run()
            continue
        with pytest.raises(ValueError, match=f"{field} has only 0 numbers"):
            made.run()


WRONG = {
    "users": (-1, 1 << 40), "length": (0, -1, 7, 1 << 20), "asked": (-1, 1 << 40), "dim": (0, -8, 1025, 1 << 62),
    "heads": (0, -1, 4, 1 << 62), "layers": (0, -1, 1 << 62), "feedforward": (0, 1 << 62),
    "positions": (0, 4, 1 << 62), "threads": (0, -1, 1 << 40), "stride": (-1, 1), "what": (-1, 6, LEARN),
    "steps": (-1, 1 << 40), "objective": (-1, 2), "compared": (0, -1, 1 << 40),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_impossible_sizes_are_refused_by_name(name):
    for value in WRONG[name]:
        made = task(DESCEND)
        made.set(**{name: value})
        told = "length|positions" if name == "positions" else name
        with pytest.raises(ValueError, match=rf"kernel: ({told}) cannot be "):
            made.run()


@pytest.mark.parametrize("name", ["users", "dim", "heads", "layers", "feedforward", "positions", "threads"])
def test_a_query_is_of_the_same_encoder_and_users(name):
    first, query = ready(LEARN)
    query.set(**{name: 1})
    with pytest.raises(ValueError, match=rf"the query's {name} cannot be 1"):
        first.run()


def test_sizes_of_no_encoder_are_refused():
    with pytest.raises(ValueError, match="heads cannot be 4"):
        Pass(torch.zeros(()), {**SIZES, "heads": 4}, (), ()).sizes()


def test_tensors_of_another_kind_are_refused():
    made = task(FORWARD)
    for name, tensor in {
        "x": torch.zeros(B, L, D),
        "weights": torch.zeros(4, 8, dtype=torch.float64).t(),
        "keep": torch.zeros(B, L, dtype=torch.int64),
        "at": torch.zeros(B, S, dtype=torch.int32),
        "state": torch.zeros(B, S, D, dtype=torch.float64, device="meta"),
    }.items():
        with pytest.raises(ValueError, match=rf"kernel: {name} .*contiguous torch.* on a CPU, got"):
            made.point(**{name: tensor})


def test_parameters_of_other_sizes_make_no_row():
    from metarec.nn import SequenceEncoder

    base = SequenceEncoder(D, max_length=6, heads=2, layers=2, feedforward=7)
    made = Pass(base.position, SIZES, (), ())
    row, parameters = torch.zeros(made.sizes()[0]), [p.detach() for p in base.parameters()]
    made.convert(row, parameters, back=False)
    for place in range(len(parameters)):
        others = [p if n != place else p.flatten()[:-1].clone() for n, p in enumerate(parameters)]
        with pytest.raises(ValueError, match=rf"kernel: parameter {place} .*encoder"):
            made.convert(row, others, back=False)
    for wrong in (parameters[:-1], [*parameters, parameters[0]], [p.double() for p in parameters]):
        with pytest.raises(ValueError, match=r"the .*encoder"):
            made.convert(row, wrong, back=False)
    with pytest.raises(ValueError, match=r"the .*weights"):
        made.convert(row[:-1], parameters, back=False)
    with pytest.raises(ValueError, match=r"the .*weights"):
        made.convert(row, [parameters[3].t(), *parameters[1:]], back=False)


def test_counts_are_in_the_order_of_the_file():
    """The enumeration in the C file names the fields in the order in which Python counts them."""
    source = (library.Path(library.__file__).with_name("encoder_kernel.c")).read_text(encoding="utf-8")
    listed = source.partition("enum { DROP")[2].partition("}")[0]
    names = ["drop", *(name.strip().lower().rstrip("_") for name in listed.split(",")[1:])]
    assert names == library._COUNTED
    assert f"#define FIELDS {len(names)}\n" in source and ctypes.sizeof(library.Job) % 8 == 0
