"""Top-k accuracy as an `evaluate` metric: no download, usable by class or by `evaluate.load` of this file's path."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np


class AccuracyAtK(evaluate.Metric):
    """
    Share of samples whose label is among the first k predictions.

    `predictions`: per sample the class indices, best first, as many as the largest k. `references`: the labels.
    `compute(k=(1, 5))` returns `{"accuracy@1": ..., "accuracy@5": ...}`, fractions of 1.

    Raises:
        ValueError: there is no sample, or fewer predictions per sample than the largest k.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of samples whose label is among the first k predictions.",
            citation="",
            inputs_description="predictions: ranked class indices per sample; references: labels.",
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("int64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self, predictions: list[list[int]], references: list[int], k: tuple[int, ...] = (1, 5)
    ) -> dict[str, float]:
        if not len(references):
            raise ValueError("There is no sample to compute an accuracy of.")
        ranked, labels = np.asarray(predictions), np.asarray(references)
        if ranked.shape[1] < max(k):
            raise ValueError(f"accuracy@{max(k)} needs {max(k)} predictions per sample, got {ranked.shape[1]}.")
        hits = ranked == labels[:, None]  # (samples, ranks)
        return {f"accuracy@{rank}": float(hits[:, :rank].any(axis=1).mean()) for rank in k}
