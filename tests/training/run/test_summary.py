"""The page of a run: every number drawn is one of the log's, and it survives thin logs."""

import html.parser
import itertools
import re
from xml.etree import ElementTree

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from dela.cli.main import run_command  # noqa: E402
from dela.errors import InputError  # noqa: E402
from dela.scores.confusion import Confusion  # noqa: E402
from dela.training.run.folder import RunFolder  # noqa: E402
from dela.training.run.loop import train  # noqa: E402
from dela.training.run.summary import (  # noqa: E402
    chart,
    confusion_matrix,
    nice_ticks,
    page,
    read_log,
    write_summary,
)


class _Balance(html.parser.HTMLParser):
    """Every element that is opened is closed."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.texts = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def _texts(text):
    parser = _Balance()
    parser.feed(text)
    assert not parser.open
    return [text for text in parser.texts if text]


def test_a_training_leaves_the_page_and_the_command_draws_it_again(with_schedule, tmp_path, capsys):
    train(with_schedule(), tmp_path / "a <b> & c", log=lambda line: None)
    summary = tmp_path / "a <b> & c" / "summary.html"
    text = summary.read_text(encoding="utf-8")
    texts = _texts(text)
    assert texts[0] == "a <b> & c"
    assert {"Loss", "Mean IoU", "Accuracy", "Learning rate", "Confusion matrix"} <= set(texts)
    assert {"floor", "box", "mean"} <= set(texts)
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(svg)

    summary.unlink()
    run_command(["summary", str(summary.parent)])
    assert capsys.readouterr().out.strip() == str(summary)
    assert summary.read_text(encoding="utf-8") == text


def test_lines_go_through_their_values():
    points = [(1.0, 0.0), (2.0, 1.0), (4.0, 0.5)]
    drawn = ElementTree.fromstring(chart("Loss", [("all", points), ("none", [])]))
    (line,) = [e for e in drawn.iter() if e.tag.endswith("polyline")]
    (x1, y1), (x2, y2), (x4, y4) = (map(float, p.split(",")) for p in line.get("points").split())
    assert x2 - x1 == pytest.approx((x4 - x1) / 3, abs=0.1)
    assert y4 - y2 == pytest.approx((y1 - y2) / 2, abs=0.1) and y1 > y4 > y2
    ticks = {e.text: float(e.get("y")) for e in drawn.iter() if e.get("text-anchor") == "end"}
    assert ticks["0"] - 4 == pytest.approx(y1, abs=0.1)
    assert ticks["1"] - 4 == pytest.approx(y2, abs=0.1)


@pytest.mark.parametrize("points", [[(3.0, 2.5)], [(1.0, 0.0), (2.0, 0.0)]])
def test_a_lone_point_and_a_flat_line_are_drawn(points):
    drawn = ElementTree.fromstring(chart("x", [("", points)]))
    assert sum(e.tag.endswith("circle") for e in drawn.iter()) == len(points)
    assert chart("x", [("", [])]) == ""


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_enclose_the_values_evenly(low, span):
    high = low + span
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 9
    margin = 1e-6 * max(abs(low), abs(high), span)
    assert ticks[0] <= low + margin and ticks[-1] >= high - margin
    first = ticks[1] - ticks[0]
    assert {round((b - a) / first, 3) for a, b in itertools.pairwise(ticks)} == {1.0}


def test_the_matrix_shows_shares_of_rows():
    confusion = Confusion(3, [[3, 1, 0], [0, 0, 0], [0, 2, 6]])
    drawn = ElementTree.fromstring(
        confusion_matrix(["a", "b & c", "<d>"], confusion.counts.tolist())
    )
    cells = [e for e in drawn.iter() if e.tag.endswith("rect")]
    assert len(cells) == 9
    titles = [e[0].text for e in cells]
    assert titles[0] == "a as a: 3 of 4" and titles[7] == "<d> as b & c: 2 of 8"
    shown = [e.text for e in drawn.iter() if e.get("font-size") == "11"]
    assert shown == ["75", "25", "25", "75"]
    assert cells[1].get("fill") == cells[7].get("fill") != cells[0].get("fill")


def test_a_page_without_validation_has_no_matrix():
    text = page("run", [{"epoch": 1.0, "step": 5.0, "loss": 2.0}], {})
    assert "Confusion" not in text and _texts(text)[0] == "run"


def test_logs_that_cannot_be_drawn_are_told(tmp_path):
    with pytest.raises(InputError, match="no log of a training run at"):
        write_summary(RunFolder(tmp_path))
    (tmp_path / "metrics.csv").write_text("epoch,step,loss\n")
    with pytest.raises(InputError, match="no line yet"):
        read_log(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_text("epoch,step,loss,val_miou\n1,5,nan,\n2,10,0.5,0.25\n")
    assert read_log(tmp_path / "metrics.csv") == [
        {"epoch": 1.0, "step": 5.0},
        {"epoch": 2.0, "step": 10.0, "loss": 0.5, "val_miou": 0.25},
    ]
    assert write_summary(RunFolder(tmp_path)).exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.csv", b"\x87\xff\n1,2\n", "is not the log of a training run"),
        ("metrics.csv", b"a,b\n1,2\n", "no number under 'epoch'"),
        ("metrics.json", b"{", "cannot read .*metrics.json"),
        ("metrics.json", b"[]", "metrics.json is not of a training run"),
    ],
)
def test_files_of_something_else_are_told(tmp_path, name, content, said):
    (tmp_path / "metrics.csv").write_text("epoch,step\n1,5\n")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        write_summary(RunFolder(tmp_path))
