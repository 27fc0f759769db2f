"""The least work of a meta-trained user, and the time a machine needs for it; docs/performance.md derives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Shape:
    """What decides the work per user.

    Attributes:
        dim: D.
        layers: encoder blocks.
        feedforward: width of the blocks' hidden layer.
        clicks: items of a user's history. The query reads them all; support reads all but the last.
        steps: inner steps.
    """

    dim: int
    layers: int
    feedforward: int
    clicks: int
    steps: int

    @property
    def support(self) -> int:
        """Tokens of the support pass."""
        return self.clicks - 1

    def matrices(self) -> list[tuple[int, int, int]]:
        """(inputs, outputs, tokens of the query) of every linear layer; query, key and value count as one.

        The last block needs the query's keys and values, but its state at the last position alone.
        """
        dim, wide = self.dim, self.feedforward
        shapes = [(dim, 3 * dim), (dim, dim), (dim, wide), (wide, dim)]
        blocks = [[(*shape, self.clicks) for shape in shapes] for _ in range(self.layers)]
        blocks[-1][1:] = [(*shape, 1) for shape in shapes[1:]]
        return [matrix for block in blocks for matrix in block]


def work(shape: Shape, *, second_order: bool = False) -> dict[str, int]:
    """FLOPs and bytes of one user: inner steps, query and meta-gradient.

    First order: each linear layer's change is kept as factors or as a matrix, whichever needs less. Second order: as
    matrices.
    """
    n, dim, layers = shape.steps, shape.dim, shape.layers
    switches = [0] if second_order else range(n + 2)
    inner = 6 * layers * dim * shape.support * (shape.support + 1)
    query = 6 * dim * shape.clicks * ((layers - 1) * (shape.clicks + 1) + 2)
    flops = n * inner + query  # of the attention, and now of the linear layers
    flops += sum(min(matrix_flops(shape, *m, switch) for switch in switches) for m in shape.matrices())
    vectors = dim * (4 * layers + 2 + shape.support)  # norms and positions
    weights = 3 * n * vectors
    weights += sum(min(_matrix_floats(shape, *m, switch) for switch in switches) for m in shape.matrices())
    block = 6 * dim + shape.feedforward  # floats per token
    token = layers * block + dim
    kept = 2 * token * n * shape.support
    kept += 2 * ((token - block + 3 * dim) * shape.clicks + block - 3 * dim)
    if second_order:
        # Back through a step: two products for each of its own; its weights and their gradient are read twice more.
        matrices = sum(inputs * outputs for inputs, outputs, _ in shape.matrices())
        flops += 2 * n * (inner + 6 * shape.support * matrices)
        weights += max(0, 5 * n - 2) * (matrices + vectors)
        kept += 3 * token * n * shape.support
    return {"flops": flops, "weight_bytes": FLOAT * weights, "activation_bytes": FLOAT * kept}


def matrix_flops(shape: Shape, inputs: int, outputs: int, read: int, switch: int) -> int:
    """FLOPs of one linear layer whose change is kept as factors for ``switch`` steps, then added up to a matrix.

    The query reads ``read`` tokens.
    """
    tokens, full, thin = shape.support, inputs * outputs, inputs + outputs
    total = 6 * read * full  # the query: outputs, gradients of inputs and of the shared weight
    for step in range(shape.steps):
        total += 4 * tokens * full  # outputs and gradients of inputs
        total += 4 * tokens * step * tokens * thin if step < switch else 2 * tokens * full
    if switch > shape.steps:
        return total + 4 * read * shape.steps * tokens * thin
    return total + 2 * switch * tokens * full


def _matrix_floats(shape: Shape, inputs: int, outputs: int, _: int, switch: int) -> int:
    """Floats that one linear layer's change moves: read in each forward and backward pass, written in each step."""
    tokens, full, thin = shape.support, inputs * outputs, inputs + outputs
    total = 0
    for step in range(shape.steps):
        if step < switch:
            total += tokens * outputs + 2 * step * tokens * thin
        else:
            total += 3 * full if step else full  # the first step reads the shared weight
    if switch > shape.steps:
        return total + 2 * shape.steps * tokens * thin
    query = 2 * full if shape.steps else 0
    return total + query + (switch * tokens * thin + full if switch else 0)


def users_per_second(work: Mapping[str, int], flops: float, copies: Mapping[int, float]) -> dict[str, float]:
    """Users/s that a machine's ceilings allow.

    Args:
        work: of one user, from :func:`work`.
        flops: FLOP/s of a large matrix product.
        copies: bytes/s of copies by their size.

    Returns:
        ``flops``: by arithmetic. ``traffic``: by the fastest copy, in cache or not. ``memory``: by the largest copy,
        for an implementation whose users at once do not fit into a cache.
    """
    moved = work["weight_bytes"] + work["activation_bytes"]
    return {
        "flops": flops / work["flops"],
        "traffic": max(copies.values()) / moved,
        "memory": copies[max(copies)] / moved,
    }
