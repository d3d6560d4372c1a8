"""
Metrics as text: undefined ones are shown, not left out.

    python -m pytest tests/metrics/test_reports.py
"""

from pvt_hf.metrics.reports import format_metrics


def test_undefined_metrics_are_shown():
    metrics = {"ap": None, "ap50": 0.123456, "eval_samples": 1281167, "per_category_ap": [None], "names": ["a"]}
    assert format_metrics(metrics) == ["ap undefined", "ap50 0.1235", "eval_samples 1281167"]
    assert format_metrics({"loss": 1.23456789}, digits=6) == ["loss 1.23457"]
