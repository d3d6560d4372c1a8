"""Top-k accuracy as an `evaluate` metric. Use the class, or `evaluate.load` with this file's path; no download."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np


class AccuracyAtK(evaluate.Metric):
    """
    Share of samples whose label is among the first k predictions.

        AccuracyAtK().compute(predictions=[[2, 0], [1, 0]], references=[0, 1], k=(1, 2))

    `predictions` are the class indices of each sample, best first, at least as many as the largest k. `references` are
    the labels. The result is `{"accuracy@1": 0.5, "accuracy@2": 1.0}`, from 0 to 1.

    Raises:
        ValueError: no samples, or fewer predictions per sample than the largest k.
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
            raise ValueError("There are no samples to compute an accuracy of.")
        ranked, labels = np.asarray(predictions), np.asarray(references)
        if ranked.shape[1] < max(k):
            raise ValueError(f"accuracy@{max(k)} needs {max(k)} predictions per sample, got {ranked.shape[1]}.")
        hits = ranked == labels[:, None]  # (samples, ranks)
        return {f"accuracy@{rank}": float(hits[:, :rank].any(axis=1).mean()) for rank in k}
