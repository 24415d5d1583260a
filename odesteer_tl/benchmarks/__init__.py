"""The field's benchmarks, for any model, method and judge.

from odesteer_tl import benchmarks
mc = benchmarks.TruthfulQAMC.read("TruthfulQA.csv", limit=100)
print(benchmarks.run(model, mc, layer=14, out="mc"))
"""

from odesteer_tl.benchmarks.baselines import baselines
from odesteer_tl.benchmarks.behaviours import ABBehaviour
from odesteer_tl.benchmarks.benchmark import Benchmark, Fold, Measured
from odesteer_tl.benchmarks.result import BenchmarkResult, BenchmarkRow
from odesteer_tl.benchmarks.run import run
from odesteer_tl.benchmarks.truthfulqa import TruthfulQAMC

__all__ = [
    "ABBehaviour",
    "Benchmark",
    "BenchmarkResult",
    "BenchmarkRow",
    "Fold",
    "Measured",
    "TruthfulQAMC",
    "baselines",
    "run",
]
