"""Activations to fit on, made up: crowded directions and a falling spectrum, as language models have them."""

import torch

import odesteer_tl as ot


def crowded(n: int, d_model: int, seed: int, separation: float = 1.0) -> ot.ContrastiveActivations:
    """2 × n/2 rows of float32, a common mean with most of the norm, the spread of coordinate i falling as i^(−1/2).

    The desired side is shifted by `separation` spreads along a mixture of the first 64 coordinates, and its spread is
    half as large again in every second of them: a line tells the sides apart, a quadratic form does so better.
    """
    generator = torch.Generator().manual_seed(seed)
    truth = torch.Generator().manual_seed(12345)  # of one problem: seeds draw other samples of it
    spread = torch.arange(1, d_model + 1).rsqrt()
    mean = 3 * spread.norm() * torch.nn.functional.normalize(torch.randn(d_model, generator=truth), dim=0)
    shift = torch.zeros(d_model)
    shift[:64] = separation * spread[:64] * torch.randn(64, generator=truth) / 8
    wider = spread.clone()
    wider[0:64:2] *= 1.5
    sides = []
    for scale, offset in ((wider, shift), (spread, torch.zeros(d_model))):
        side = torch.randn(n // 2, d_model, generator=generator)
        sides.append(side.mul_(scale).add_(mean + offset))
    return ot.ContrastiveActivations(desired=sides[0], undesired=sides[1], layer=0)
