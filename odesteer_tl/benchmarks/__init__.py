"""The field's benchmarks, for any model, method and judge.

from odesteer_tl import benchmarks
mc = benchmarks.TruthfulQAMC.read("TruthfulQA.csv", limit=100)
print(benchmarks.run(model, mc, layer=14, out="mc"))
"""

from odesteer_tl.benchmarks.baselines import baselines
from odesteer_tl.benchmarks.behaviours import ABBehaviour
from odesteer_tl.benchmarks.benchmark import Benchmark, Fold, Measured
from odesteer_tl.benchmarks.classifier_judges import ClassifierJudge, RewardJudge
from odesteer_tl.benchmarks.endpoint_judge import EndpointJudge
from odesteer_tl.benchmarks.judges import Judge, KeywordJudge, WordJudge
from odesteer_tl.benchmarks.language_model_judge import LanguageModelJudge
from odesteer_tl.benchmarks.preferences import Preferences
from odesteer_tl.benchmarks.result import BenchmarkResult, BenchmarkRow
from odesteer_tl.benchmarks.run import run
from odesteer_tl.benchmarks.samples import Sampling
from odesteer_tl.benchmarks.toxicity import RealToxicityPrompts
from odesteer_tl.benchmarks.truthfulqa import TruthfulQAMC
from odesteer_tl.benchmarks.truthfulqa_answers import TruthfulQA

__all__ = [
    "ABBehaviour",
    "Benchmark",
    "BenchmarkResult",
    "BenchmarkRow",
    "ClassifierJudge",
    "EndpointJudge",
    "Fold",
    "Judge",
    "KeywordJudge",
    "LanguageModelJudge",
    "Measured",
    "Preferences",
    "RealToxicityPrompts",
    "RewardJudge",
    "Sampling",
    "TruthfulQA",
    "TruthfulQAMC",
    "WordJudge",
    "baselines",
    "run",
]
