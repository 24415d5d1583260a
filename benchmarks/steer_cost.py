"""What one steer call costs: against its two matrix products alone, and against the paper's algorithm written plainly.

    python benchmarks/steer_cost.py             # the figures, one thread
    python benchmarks/steer_cost.py --growth    # one call for batch 1 … 4096, width 512 … 8192, rank 16 … 1024

The floor is what cannot be left out: d_model × rank numbers of 4 bytes come from memory twice, for the way into the
coordinates and the way back; both products are timed alone, side by side with the call, each in the faster layout.
`paper` is the vector–Jacobian product of the tensor sketch (n_components 8000) through FFTs, as methods of that paper
compute it at every step: nothing is kept from one step to the next. Ten Euler steps, float32.
"""

import argparse
from collections.abc import Callable

import torch
from activations import crowded
from paired import line, timed_in_turn
from torch import Tensor

import odesteer_tl as ot
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import LogRatioBarrier, auc
from odesteer_tl.flows.features import Kernel, PolynomialSketch, Sketch

D_MODEL, RANK, STEPS, T = 4096, 256, 10, 5.0


def method_of(d_model: int, rank: int, steps: int = STEPS) -> ot.ODESteer:
    """ODESteer on random landmarks and weights: what it costs does not depend on the numbers."""
    generator = torch.Generator().manual_seed(0)
    landmarks = torch.nn.functional.normalize(torch.randn(rank, d_model, generator=generator), dim=-1)
    features = Kernel(landmarks, torch.eye(rank), degree=2, gamma=0.1, coef0=1.0)
    barrier = LogRatioBarrier(features, torch.randn(rank, generator=generator), 0.0)
    return ot.ODESteer(barrier, Origin(d_model=d_model), steps)


def products(a: Tensor, d_model: int, rank: int) -> list[Callable[[], object]]:
    """Both products by themselves, in both layouts."""
    basis, y = torch.randn(d_model, rank), torch.randn(len(a), rank)
    rows = basis.T.contiguous()
    return [
        lambda: (a @ basis, y @ rows),
        lambda: (a @ basis, y @ basis.T),
    ]


def sketched_plainly(x: Tensor, w: Tensor, sketch: Sketch) -> Tensor:
    """∇ wᵀφ(x) for x = a/‖a‖: every transform anew, as autograd through the features would have it."""
    n, scaled = sketch.n_components, torch.nn.functional.pad(sketch.gamma**0.5 * x, (0, 1), value=sketch.coef0**0.5)
    empty = x.new_zeros((*x.shape[:-1], n))
    pairs = list(zip(sketch.hashes, sketch.signs, strict=True))
    spectra = [torch.fft.rfft(empty.index_add(-1, bucket, scaled * sign)) for bucket, sign in pairs]
    g = torch.zeros_like(x)
    for k, (bucket, sign) in enumerate(pairs):
        other = torch.fft.irfft(spectra[1 - k], n=n)
        c = torch.fft.irfft(torch.fft.rfft(other).conj() * torch.fft.rfft(w), n=n)
        g = g + (c[..., bucket] * sign)[..., : x.shape[-1]]
    return sketch.gamma**0.5 * g


def paper(a: Tensor, w: Tensor, sketch: Sketch) -> Tensor:
    """Ten Euler steps of the unit gradient, in full coordinates."""
    for _ in range(STEPS):
        r = a.norm(dim=-1, keepdim=True) + 1e-12
        x = a / r
        g = sketched_plainly(x, w, sketch)
        g = (g - x * (x * g).sum(-1, keepdim=True)) / r
        a = a + T / STEPS * g / (g.norm(dim=-1, keepdim=True) + 1e-10)
    return a


def figures(runs: int) -> None:
    """The lines of the table."""
    method, one, hundred = (method_of(D_MODEL, RANK, steps) for steps in (STEPS, 1, 100))
    sketch = PolynomialSketch(n_components=8000).fit(torch.zeros(1, D_MODEL))
    w = torch.randn(8000, generator=torch.Generator().manual_seed(1))
    slope = sketch.gradient_function(w)

    def cached(x: Tensor) -> Tensor:
        return slope.function(x, *slope.params)

    for batch in (1, 10, 64):
        a = torch.randn(batch, D_MODEL, generator=torch.Generator().manual_seed(batch))
        took = timed_in_turn(
            [lambda a=a: method.steer(a, T=T), *products(a, D_MODEL, RANK), lambda a=a: paper(a, w, sketch)], runs
        )
        floors = [min(run[1:3]) for run in took]
        milliseconds = f"{1000 * min(run[0] for run in took):.2f} ms at best"
        print(
            line(f"steer_over_floor_{batch}", [run[0] / f for run, f in zip(took, floors, strict=True)], milliseconds)
        )
        print(line(f"paper_over_steer_{batch}", [run[3] / run[0] for run in took]))
        x = torch.nn.functional.normalize(a, dim=-1)
        tangent = sketched_plainly(x, w, sketch)
        tangent = tangent - x * (x * tangent).sum(-1, keepdim=True)
        apart = float((slope(x) - tangent).norm() / tangent.norm())
        took = timed_in_turn([lambda x=x: sketched_plainly(x, w, sketch), lambda x=x: cached(x)], runs)
        print(line(f"sketch_plain_over_cached_{batch}", [run[0] / run[1] for run in took], f"apart by {apart:.0e}"))
    a = torch.randn(1, D_MODEL, generator=torch.Generator().manual_seed(1))
    took = timed_in_turn([lambda: hundred.steer(a, T=T), lambda: one.steer(a, T=T)], runs)
    print(line("steps_100_over_1", [run[0] / run[1] for run in took]))


def agreement(seeds: int) -> None:
    """How near the fields of few landmarks are to that of the full kernel, held out, and what the AUC loses."""
    cosines: dict[int, list[float]] = {RANK: [], 512: []}
    losses: dict[int, list[float]] = {RANK: [], 512: []}
    for seed in range(seeds):
        acts, held_out = crowded(2000, D_MODEL, seed), crowded(2000, D_MODEL, 1000 + seed)
        a = torch.cat([held_out.desired, held_out.undesired])
        full = ot.ODESteer.fit(acts, features=ot.Polynomial(rank=2000))
        whole = auc(full.barrier, held_out.desired, held_out.undesired)
        for rank in cosines:
            few = ot.ODESteer.fit(acts, features=ot.Polynomial(rank=rank))
            cosines[rank].append(float(torch.cosine_similarity(few.vector_field(a), full.vector_field(a)).mean()))
            losses[rank].append(auc(few.barrier, held_out.desired, held_out.undesired) - whole)
    for rank, found in cosines.items():
        least, most = min(losses[rank]), max(losses[rank])
        print(
            f"rank_{rank}_against_full cosine {min(found):.4f} at least | AUC {least:+.4f} … {most:+.4f}, {seeds} seeds"
        )


def growth(runs: int) -> None:
    """Milliseconds of one call, its ratio to the floor, and the bytes that must move per second of it."""
    print(f"{'batch':>6} {'width':>6} {'rank':>5} {'ms':>8} {'× floor':>8} {'GB/s':>6} {'GFLOP/s':>8}")
    points = [(b, 4096, 256) for b in (1, 4, 16, 64, 256, 1024, 4096)]
    points += [(1, d, 256) for d in (512, 1024, 2048, 8192)] + [(64, d, 256) for d in (512, 1024, 2048, 8192)]
    points += [(b, 4096, m) for b in (1, 64) for m in (16, 64, 1024)]
    for batch, d_model, rank in points:
        a = torch.randn(batch, d_model)
        method = method_of(d_model, rank)
        took = timed_in_turn([lambda a=a, m=method: m.steer(a, T=T), *products(a, d_model, rank)], runs)
        best, floor = min(run[0] for run in took), min(min(run[1:]) for run in took)
        moved, flops = 8 * d_model * rank + 8 * batch * d_model, 4 * batch * d_model * rank
        print(
            f"{batch:>6} {d_model:>6} {rank:>5} {1000 * best:>8.3f} {best / floor:>8.2f} {moved / best / 1e9:>6.1f} "
            f"{flops / best / 1e9:>8.1f}"
        )


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        if args.growth:
            growth(args.runs)
            return
        figures(args.runs)
    agreement(args.seeds)


if __name__ == "__main__":
    main()
