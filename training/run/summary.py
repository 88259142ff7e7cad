"""``summary.html`` of a run folder: curves, confusion matrix and per-class table on one page.

Drawn as SVG by hand, so that the page needs no package, no network and a few milliseconds, and can
be written after every epoch.
"""

from __future__ import annotations

import csv
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dela.errors import InputError
from dela.files import atomic_path
from dela.text import visible
from dela.training.run.folder import RunFolder

_COLORS = ("#2563eb", "#dc2626", "#059669", "#d97706")
_WIDTH, _HEIGHT = 440, 254
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 30, 38
_CELL, _MOST_CLASSES_WITH_NUMBERS = 34, 25

# Title, and what each line shows: its name and the column of metrics.csv.
_CHARTS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Loss",
        (
            ("in all", "loss"),
            ("cross-entropy", "cross_entropy"),
            ("coordinates", "coordinate_loss"),
        ),
    ),
    (
        "Mean IoU",
        (
            ("training", "train_miou"),
            ("validation", "val_miou"),
            ("over objects", "val_instance_miou"),
        ),
    ),
    (
        "Accuracy",
        (
            ("training", "train_oa"),
            ("validation", "val_oa"),
            ("class mean", "val_macc"),
        ),
    ),
    ("Learning rate", (("", "learning_rate"),)),
    ("Gradient norm", (("", "gradient_norm"),)),
    ("Seconds of steps per epoch", (("", "seconds"),)),
)

_MEASURES = {"miou": "mean IoU", "instance_miou": "mean IoU over objects", "oa": "accuracy"}

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2937; background: #fff;
       max-width: 1420px; margin: 24px auto; padding: 0 20px; }
h1 { font-size: 22px; margin: 0 0 4px } h2 { font-size: 17px; margin: 28px 0 8px }
p { margin: 0 0 12px; color: #4b5563 } svg { max-width: 100%; height: auto }
.charts { display: flex; flex-wrap: wrap; gap: 12px }
table { border-collapse: collapse } td, th { padding: 3px 14px 3px 0; text-align: right }
td:first-child, th:first-child { text-align: left } th { border-bottom: 1px solid #9ca3af }
tr:last-child td { border-top: 1px solid #9ca3af; font-weight: 600 }
"""


@dataclass(frozen=True)
class _Style:
    """How a text is drawn; it is turned by degrees about its place."""

    size: int = 12
    bold: bool = False
    color: str = "#374151"
    turn: int = 0


_PLAIN = _Style()


def write_summary(folder: RunFolder) -> Path:
    """Draw what ``metrics.csv`` and ``metrics.json`` of a run hold so far.

    Raises:
        InputError: no ``metrics.csv``, or the page cannot be written.
    """
    rows = read_log(folder.log)
    scores = folder.read_scores() if folder.scores.exists() else {}
    with atomic_path(folder.summary, overwrite=True) as temporary:
        temporary.write_text(page(folder.path.absolute().name, rows, scores), encoding="utf-8")
    return folder.summary


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a ``metrics.csv``; cells that hold no number are left out.

    Raises:
        InputError: there is no such file, no line in it, or it is something else.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"no log of a training run at {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not the log of a training run: {error}") from error
    if not rows:
        raise InputError(f"{path} has no line yet; wait for the end of the first epoch")
    for column in ("epoch", "step"):
        if not _is_number(rows[-1].get(column)):
            raise InputError(f"{path} is not the log of a training run: no number under {column!r}")
    return [{k: float(v) for k, v in row.items() if k and _is_number(v)} for row in rows]


def page(name: str, rows: Sequence[dict[str, float]], scores: dict[str, Any]) -> str:
    """The whole page as HTML.

    Args:
        name: of the run.
        rows: lines of ``metrics.csv``.
        scores: ``metrics.json``; its ``validation`` may be missing or None.
    """
    last = rows[-1]
    title = _shown(name)
    facts = [f"{last['epoch']:.0f} epochs, {last['step']:,.0f} steps"]
    if scores.get("best") is not None:
        label = _MEASURES[scores["best_measure"]]
        facts.append(f"best validation {label} {_percent(scores['best'])}")
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1><p>{'; '.join(facts)}</p>",
        '<div class="charts">',
        *(chart(heading, _lines(rows, lines)) for heading, lines in _CHARTS),
        "</div>",
    ]
    validation = scores.get("validation")
    if validation:
        classes = validation["classes"]
        parts += [
            f"<h2>Validation, epoch {scores['epochs']}</h2>",
            class_table(validation),
            "<h2>Confusion matrix</h2>",
            "<p>Share of each true class (row) that was given each class (column), percent.</p>",
            confusion_matrix([row["name"] for row in classes], validation["confusion"]),
        ]
    return "\n".join([*parts, "</body></html>", ""])


def chart(title: str, lines: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """A line chart as SVG; empty text when no line has a point.

    Args:
        lines: name and (epoch, value) points of each; a lone point is drawn as a dot.
    """
    lines = [(name, points) for name, points in lines if points]
    if not lines:
        return ""
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    first, final = min(xs), max(max(xs), min(xs) + 1)
    ticks = nice_ticks(min(ys), max(ys))
    low, high = ticks[0], ticks[-1]

    def across(x: float) -> float:
        return _LEFT + (x - first) / (final - first) * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _TOP + (high - y) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    drawn = [_text(_LEFT, 18, title, "start", _Style(14, bold=True))]
    for tick in ticks:
        y = down(tick)
        end = _WIDTH - _RIGHT
        drawn.append(f'<line x1="{_LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        drawn.append(_text(_LEFT - 6, y + 4, f"{tick:.6g}", "end"))
    for tick in nice_ticks(first, final):
        if first <= tick <= final and tick == round(tick):
            drawn.append(_text(across(tick), _HEIGHT - 19, f"{tick:.0f}", "middle"))
    drawn.append(_text(_WIDTH - _RIGHT, _HEIGHT - 5, "epoch", "end"))
    legend = _WIDTH - _RIGHT
    for (name, points), color in reversed(list(zip(lines, _COLORS, strict=False))):
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        drawn.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8" '
            'stroke-linejoin="round"/>'
        )
        if len(points) <= 30:
            drawn += [
                f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.4" fill="{color}"/>'
                for x, y in points
            ]
        if name:
            drawn.append(_text(legend, 18, name, "end", _Style(color=color)))
            legend -= 7 * len(name) + 12
    return _svg(_WIDTH, _HEIGHT, drawn)


def confusion_matrix(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix as SVG, every row shaded by its shares."""
    longest = max(len(name) for name in names)
    left, top = 7 * longest + 16, 5 * longest + 22
    drawn = []
    for row, (name, line) in enumerate(zip(names, counts, strict=True)):
        y = top + row * _CELL
        drawn.append(_text(left - 8, y + _CELL / 2 + 4, name, "end"))
        x = left + row * _CELL + _CELL / 2 + 4
        drawn.append(_text(x, top - 8, name, "start", _Style(turn=-45)))
        whole = sum(line)
        for column, count in enumerate(line):
            share = count / whole if whole else 0.0
            x = left + column * _CELL
            drawn.append(
                f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="{_shade(share)}" '
                f'stroke="#fff"><title>{_shown(name)} as {_shown(names[column])}: '
                f"{count:,} of {whole:,}</title></rect>"
            )
            if share >= 0.005 and len(names) <= _MOST_CLASSES_WITH_NUMBERS:
                color = "#fff" if share > 0.35 else "#1f2937"
                text = f"{100 * share:.0f}"
                style = _Style(11, color=color)
                drawn.append(_text(x + _CELL / 2, y + _CELL / 2 + 4, text, "middle", style))
    side = len(names) * _CELL
    return _svg(left + side + 4 * longest + 10, top + side + 4, drawn)


def class_table(validation: dict[str, Any]) -> str:
    """IoU, recall and precision of every class as an HTML table."""
    lines = ["<tr><th>class</th><th>points</th><th>IoU</th><th>recall</th><th>precision</th></tr>"]
    for row in validation["classes"]:
        cells = [f"{row['points']:,}", *map(_percent, (row["iou"], row["accuracy"]))]
        cells.append(_percent(row["precision"]))
        lines.append(_table_row(_shown(row["name"]), cells))
    means = [_percent(validation["miou"]), _percent(validation["macc"])]
    total = [f"{validation['points']:,}", *means, f"accuracy {_percent(validation['oa'])}"]
    return "<table>\n" + "\n".join([*lines, _table_row("mean", total)]) + "\n</table>"


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers, evenly spaced, that enclose ``low`` and ``high``."""
    if not high > low:
        margin = abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _lines(
    rows: Sequence[dict[str, float]], lines: Sequence[tuple[str, str]]
) -> list[tuple[str, list[tuple[float, float]]]]:
    return [
        (name, [(row["epoch"], row[column]) for row in rows if column in row])
        for name, column in lines
    ]


def _is_number(text: Any) -> bool:
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False


def _shown(text: str) -> str:
    return html.escape(visible(text))


def _table_row(name: str, cells: Sequence[str]) -> str:
    return f"<tr><td>{name}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _shade(share: float) -> str:
    """White at 0 to blue at 1; small shares are told apart too."""
    amount = math.sqrt(share)
    return "#" + "".join(f"{round(248 + amount * (end - 248)):02x}" for end in (30, 64, 175))


def _text(x: float, y: float, text: str, anchor: str, style: _Style = _PLAIN) -> str:
    extra = ' font-weight="600"' if style.bold else ""
    extra += f' transform="rotate({style.turn} {x:.1f} {y:.1f})"' if style.turn else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{style.size}" '
        f'fill="{style.color}"{extra}>{_shown(text)}</text>'
    )


def _svg(width: float, height: float, drawn: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="system-ui, sans-serif">\n'
        + "\n".join(drawn)
        + "\n</svg>"
    )
