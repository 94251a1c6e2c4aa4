"""Muon: stochastic gradient descent whose update of a matrix is made orthogonal (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Muon:
    """Momentum whose update is made orthogonal, so that every direction of a matrix moves alike.

    torch.optim.Muon computes in bfloat16, which most CPUs only emulate, and matrix by matrix; this one computes in
    float32 and takes all matrices of one shape at once.
    """

    def __init__(self, parameters: Sequence[Any], *, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        shapes = sorted({tuple(p.shape) for p in parameters})
        self.groups = [[p for p in parameters if tuple(p.shape) == shape] for shape in shapes]
        self.momentum, self.weight_decay = momentum, weight_decay
        self.velocities: list[Any] = [0.0] * len(self.groups)

    def step(self, learning_rate: float) -> None:
        """One update of every matrix from its gradient."""
        import torch

        with torch.no_grad():
            for index, group in enumerate(self.groups):
                gradient_NRC = torch.stack([p.grad for p in group])
                velocity_NRC = self.velocities[index] = self.momentum * self.velocities[index] + gradient_NRC
                update_NRC = orthogonal(gradient_NRC + self.momentum * velocity_NRC)
                scale = learning_rate * max(1.0, update_NRC.shape[1] / update_NRC.shape[2]) ** 0.5
                for p, update_RC in zip(group, update_NRC, strict=True):
                    p.mul_(1 - learning_rate * self.weight_decay).sub_(update_RC, alpha=scale)


def orthogonal(matrices_NRC: Any) -> Any:
    """The nearest (semi-)orthogonal matrices, roughly: singular values come to about 0.7 to 1.2.

    Five Newton-Schulz steps with the quintic's coefficients of the Muon post.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    wide_NRC = matrices_NRC.mT if tall else matrices_NRC
    wide_NRC = wide_NRC / (wide_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram_NRR = wide_NRC @ wide_NRC.mT
        wide_NRC = a * wide_NRC + (b * gram_NRR + c * gram_NRR @ gram_NRR) @ wide_NRC
    return wide_NRC.mT if tall else wide_NRC
