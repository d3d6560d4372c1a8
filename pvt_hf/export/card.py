"""The card of an export: `README.md` in its folder."""

from __future__ import annotations

from typing import Any

from ..weights.export_formats import EXPORT_FORMATS


def card_text(report: dict[str, Any]) -> str:
    """
    The text of the card.

    Args:
        report: the content of `export_report.json`.
    """
    kind = EXPORT_FORMATS[report["format"]]
    fixed = report["fixed_size"]
    side = report["smallest_side"]
    takes = f"any number of images of any size from {side}x{side} pixels"
    if fixed:
        takes = f"one image of {fixed[0]}x{fixed[1]} pixels"
    inputs = {
        "pixel_values": "`pixel_values` (batch, channels, height, width)",
        "pixel_mask": "`pixel_mask` (batch, height, width) int64, 1 for the image and 0 for padding",
    }
    speed = report["speed"]
    tolerance = f" (tolerance {report['tolerance']:.0e})" if report["tolerance"] else ""
    rows = [
        f"| {one['batch']} x {one['height']}x{one['width']} | {one['difference']:.2g} | {seen_by_both(one)} |"
        for one in report["comparison"]
    ]
    lines = [
        f"# {report['model_class']} as {kind.title}",
        "",
        f"Exported from `{report['model']}` in {report['precision']}. Takes {takes}:",
        f"{'; '.join(inputs[name] for name in report['inputs'])}. `preprocessor_config.json` describes the "
        "preparation of images, `labels.txt` has the classes in the order of their indices.",
        "",
        "```bash",
        report["command"],
        "```",
        "",
    ]
    if report["task"]:
        lines += ["Answers like the model:", "", "```bash", "pvt-hf predict --model . photo.jpg", "```", ""]
    lines += [
        f"Largest difference to the model, relative to the largest value{tolerance}:",
        "",
        "| images | difference | candidates that both have |",
        "|---|---|---|",
        *rows,
        "",
        *accuracy_lines(report),
        f"Speed, one image of {speed['height']}x{speed['width']}: {speed_text(speed)}. Medians: "
        f"{speed['seconds_export'] * 1e3:.1f} ms against {speed['seconds_model'] * 1e3:.1f} ms, on the machine that "
        f"exported it, {speed['processors']} processors, {speed['threads']} threads in PyTorch.",
        "",
        f"Versions: {', '.join(f'{name} {version}' for name, version in report['versions'].items())}.",
        "",
    ]
    return "\n".join(lines)


def speed_text(speed: dict[str, Any]) -> str:
    """How fast an export is, with the spread. `speed` is as [`pvt_hf.export.comparison.measure_speed`] returns it."""
    lower, upper = speed["ratio_quartiles"]
    return (
        f"{speed['ratio']:.2f} times the model in PyTorch ({lower:.2f} to {upper:.2f}; median and quartiles of "
        f"{speed['pairs']} pairs of calls)"
    )


def seen_by_both(comparison: dict[str, Any]) -> str:
    """The column of a detector: how many candidates were compared."""
    if comparison["objects"] is None:
        return "-"
    return f"{comparison['share']:.1%} of {comparison['objects']}"


def accuracy_lines(report: dict[str, Any]) -> list[str]:
    """Accuracy before and after, if it was measured."""
    if "accuracy" not in report:
        return []
    accuracy = report["accuracy"]
    rows = [f"| {name} | {before:.4f} | {after:.4f} |" for name, (before, after) in accuracy["figures"].items()]
    text = f"Accuracy on `{accuracy['dataset']}`, {accuracy['split']}, {accuracy['samples']} images"
    if report["precision"] == "int8":
        text += f" (calibrated with {accuracy['calibration_images']} images, {accuracy['calibration_split']})"
    return [f"{text}:", "", "| | model | export |", "|---|---|---|", *rows, ""]
