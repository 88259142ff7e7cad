"""The tables in which the commands of this folder show their results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dela.cli.console import bare_table, styled, table
from dela.text import cut

if TYPE_CHECKING:  # rich is imported once something is drawn
    from rich.table import Table

    from dela.runtime.doctor import Finding
    from dela.runtime.verify import Parity
    from dela.scores.confusion import Confusion


def predictions_table(results: Sequence[dict[str, Any]]) -> Table:
    """One row per scan: sizes and the time of each phase."""
    drawn = table("scan", "points", "voxels", "tiles", "read", "pyramid", "network", "write")
    for result in results:
        seconds = result["seconds"]
        drawn.add_row(
            result["input"],
            f"{result['points']:,}",
            f"{result['voxels']:,}",
            str(result["tiles"]),
            *(f"{seconds[phase]:.2f} s" for phase in ("read", "pyramid", "network", "write")),
        )
    return drawn


def failures_table(failures: Sequence[dict[str, str]]) -> Table:
    """One row per scan that was not labelled, and why."""
    drawn = table("failed", "why", left=2)
    for failure in failures:
        scan, error = failure["input"], failure["error"]
        drawn.add_row(scan, cut(error.removeprefix(f"{scan}: ").removeprefix(f"{scan} ")))
    return drawn


def classes_table(results: Sequence[dict[str, Any]], scores: Confusion | None = None) -> Table:
    """Points and share of every class over all scans, with the IoU where truth was given."""
    drawn = table("class", "points", "share", *(["IoU"] if scores else []))
    total = sum(result["points"] for result in results)
    names = dict.fromkeys(name for result in results for name in result["classes"])
    for index, name in enumerate(names):
        count = sum(result["classes"].get(name, 0) for result in results)
        row = [name, f"{count:,}", f"{100 * count / max(total, 1):.2f} %"]
        if scores:
            iou = scores.iou[index] if index < scores.num_classes else math.nan
            row.append("-" if math.isnan(iou) else f"{100 * iou:.2f} %")
        drawn.add_row(*row)
    return drawn


def parity_table(reports: Sequence[Parity]) -> Table:
    """A column per backend: errors, agreement, the tolerance, the verdict."""
    drawn = table("", *(report.name for report in reports), left=1)
    rows: list[tuple[str, Callable[[Parity], str]]] = [
        ("points compared", lambda r: f"{r.points:,}"),
        ("largest logit", lambda r: f"{r.largest_logit:.4g}"),
        ("max absolute error", lambda r: f"{r.max_error:.3e}"),
        ("mean absolute error", lambda r: f"{r.mean_error:.3e}"),
        ("max error / largest logit", lambda r: f"{r.max_relative:.3e}"),
        ("mean error / largest logit", lambda r: f"{r.mean_relative:.3e}"),
        ("  allowed", lambda r: f"{r.tolerance.error:.1e}"),
        ("cosine", lambda r: f"{r.cosine:.9f}"),
        ("label agreement", lambda r: f"{100 * r.agreement:.4f} %"),
        ("  required", lambda r: f"{100 * r.tolerance.agreement:.2f} %"),
    ]
    for name, text in rows:
        drawn.add_row(name, *(text(report) for report in reports))
    drawn.add_section()
    for index, item in enumerate(reports[0].classes):
        if item.points:
            drawn.add_row(
                f"{item.name} ({item.points:,})",
                *(_class_cell(report, index) for report in reports),
            )
    drawn.add_section()
    passed, failed = styled("passed", "green"), styled("FAILED", "red")
    drawn.add_row("verdict", *(passed if report.passed else failed for report in reports))
    return drawn


def latency_table(results: Sequence[dict[str, Any]]) -> Table:
    """A row per backend and input: the network's median, 90th percentile and rate, the phases."""
    drawn = table(
        "backend", "model", "input", "points", "network", "p90", "points/s", "preprocess",
        "postprocess", "total", left=3,
    )  # fmt: skip
    for result in results:
        seconds = result["seconds"]
        drawn.add_row(
            result["backend"],
            Path(result["model"]).name,
            Path(result["input"]).name,
            f"{result['points']:,}",
            _milliseconds(seconds["network"]["median"]),
            _milliseconds(seconds["network"]["p90"]),
            f"{result['points_per_second']:,.0f}",
            *(
                _milliseconds(seconds[phase]["median"])
                for phase in ("preprocess", "postprocess", "total")
            ),
        )
    return drawn


def percentiles_table(results: Sequence[dict[str, Any]]) -> Table:
    """Half, nine in ten and 99 in a hundred of the repetitions, and the longest, of each phase."""
    drawn = table("backend", "input", "phase", "p50", "p90", "p99", "max", left=3)
    for result in results:
        for phase, values in result["seconds"].items():
            drawn.add_row(result["backend"], Path(result["input"]).name, phase, *_spread_of(values))
    return drawn


def kinds_table(results: Sequence[dict[str, Any]]) -> Table:
    """Times of the network at sizes met first and again, warm-up repetitions among them."""
    drawn = table("backend", "input", "network", "runs", "p50", "p90", "p99", "max", left=3)
    for result in results:
        for kind, values in result["kinds"].items():
            name = Path(result["input"]).name
            drawn.add_row(result["backend"], name, kind, f"{values['runs']:,}", *_spread_of(values))
    return drawn


def layers_table(result: dict[str, Any], rows: int) -> Table:
    """The layers of a network that took longest, up to ``rows`` of them, and all others."""
    layers = result["layers"]
    drawn = table("layer", "operator", "time", "share", left=2)
    drawn.title = f"{result['backend']}, {Path(result['input']).name}"
    for layer in layers[:rows]:
        drawn.add_row(
            layer["name"],
            layer["operator"],
            _milliseconds(layer["seconds"]),
            f"{100 * layer['share']:.1f} %",
        )
    if others := layers[rows:]:
        seconds, share = (sum(layer[key] for layer in others) for key in ("seconds", "share"))
        drawn.add_row(f"{len(others)} others", "", _milliseconds(seconds), f"{100 * share:.1f} %")
    return drawn


def findings_table(findings: Sequence[Finding]) -> Table:
    """What ``dela doctor`` found, the mend under each finding that needs one."""
    from dela.runtime.doctor import BROKEN, NOTE, OK, WARNING

    colors = {OK: "green", NOTE: "dim", WARNING: "yellow", BROKEN: "red"}
    drawn = bare_table(show_header=False)
    for name in ("status", "subject"):
        drawn.add_column(name, no_wrap=True)
    drawn.add_column("detail", overflow="fold")
    for finding in findings:
        detail = finding.detail
        if finding.mend and finding.status != OK:
            detail += f"\n-> {finding.mend}"
        drawn.add_row(styled(finding.status, colors[finding.status]), finding.subject, detail)
    return drawn


def info_table(values: dict[str, Any]) -> Table:
    """Names and values; lists in one line, tables of classes, inputs and columns a line each."""
    drawn = bare_table(show_header=False)
    drawn.add_column(style="bold")
    drawn.add_column(overflow="fold")
    for name, value in values.items():
        label = name.replace("_", " ")
        if isinstance(value, dict):
            lines = [f"{key}: {_flat(item)}" for key, item in value.items()]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines = [_flat(item) for item in value]
        else:
            lines = [_flat(value)]
        drawn.add_row(label, "\n".join(lines) or "none")
    return drawn


def _spread_of(values: dict[str, float]) -> list[str]:
    return [_milliseconds(values[key]) for key in ("median", "p90", "p99", "max")]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{1000 * seconds:,.0f} ms"


def _class_cell(report: Parity, index: int) -> str:
    item = report.classes[index]
    agreement = "-" if item.agreement is None else f"{100 * item.agreement:.3f} %"
    return f"{agreement}, max {item.max_error:.1e}"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        first, *rest = value.items()
        lead = str(first[1]) if first[0] == "name" else f"{first[0]} {_flat(first[1])}"
        return ", ".join([lead, *(f"{key} {_flat(item)}" for key, item in rest)])
    if isinstance(value, list):
        return " ".join(_flat(item) for item in value) or "none"
    if isinstance(value, bool) or not isinstance(value, int):
        return f"{value:.10g}" if isinstance(value, float) else str(value)
    return f"{value:,}"
