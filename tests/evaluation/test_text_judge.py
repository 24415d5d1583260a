"""The judge of one's own texts: scikit-learn's own pipeline, what it finds in planted words, and what it refuses."""

import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from odesteer_tl.evaluation.text_judge import fitted_judge

GOOD = [f"a great film number {i}" for i in range(10)]
BAD = [f"a dull film number {i}" for i in range(8)]


def test_it_is_the_pipeline_of_scikit_learn_and_its_accuracy_is_of_held_out_texts():
    judge, accuracy = fitted_judge(GOOD, BAD)
    regression = LogisticRegression(class_weight="balanced", C=10.0, max_iter=1000)
    pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), regression)
    pipeline.fit([*GOOD, *BAD], [1] * 10 + [0] * 8)
    asked = ["great", "dull number", "nothing of it", "a great dull film"]
    expected = torch.from_numpy(pipeline.predict_proba(asked)[:, 1])
    torch.testing.assert_close(judge.positive_probability(asked), expected, atol=1e-5, rtol=1e-4)
    assert accuracy == 1.0
    mixed = [f"word{i} of{i}" for i in range(20)]
    assert fitted_judge(mixed[:10], mixed[10:])[1] <= 0.6  # words of their own say nothing of others


def test_texts_without_words_and_too_few_are_refused():
    with pytest.raises(ValueError, match="hold no words"):
        fitted_judge(["a"] * 5, ["b"] * 5)
    with pytest.raises(ValueError, match="at least 5 texts a side"):
        fitted_judge(["one"] * 4, ["two"] * 9)
