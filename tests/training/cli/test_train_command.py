"""`dela train` and `dela eval` as a user calls them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from dela.cli.main import run_command  # noqa: E402
from dela.errors import ConfigError, InputError  # noqa: E402
from dela.training.cli.train import find_config  # noqa: E402
from dela.training.run.folder import to_toml  # noqa: E402
from dela.training.settings.train import load_config  # noqa: E402


@pytest.fixture
def config_file(with_schedule, tmp_path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(to_toml(with_schedule(epochs=1)), encoding="utf-8")
    return path


def test_train_then_eval_give_the_same_scores(config_file, tmp_path, capsys):
    run = tmp_path / "run"
    run_command(["train", str(config_file), "-o", str(run), "--json", "--set", "train.seed=5"])
    trained = json.loads(capsys.readouterr().out)
    assert load_config(run / "config.toml").train.seed == 5

    run_command(["eval", str(run / "last.pt"), "--split", "val", "--json"])
    scored = json.loads(capsys.readouterr().out)
    assert scored == trained["validation"]

    run_command(["eval", str(run / "best.pt"), "--split", "val", "--votes", "2"])
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ["class", "floor", "box", "mean"]


def test_eval_refuses_data_of_other_classes(config_file, tmp_path, capsys):
    run = tmp_path / "run"
    run_command(["train", str(config_file), "-o", str(run), "--set", "train.steps_per_epoch=1"])
    other = tmp_path / "other.toml"
    other.write_text(config_file.read_text().replace('"box"', '"roof"'), encoding="utf-8")
    with pytest.raises(InputError, match="floor, roof; the network tells apart floor, box"):
        run_command(["eval", str(run / "last.pt"), "--config", str(other), "--split", "val"])


def test_bad_choices_are_refused_before_anything_is_read(config_file, tmp_path, capsys):
    run = tmp_path / "run"
    for words in (
        ["train", str(config_file), "-o", str(run), "--resume", "--overwrite"],
        ["train", str(config_file), "-o", str(run), "--set", "epochs=3"],
        ["eval", str(run / "best.pt"), "--split", "exam"],
    ):
        with pytest.raises(SystemExit) as ended:
            run_command(words)
        assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert "--set: override 'epochs=3' is not section.key=value" in errors
    assert "give one" in errors and "'train', 'val', 'test'" in errors
    with pytest.raises(InputError, match="does not exist"):
        run_command(["eval", str(run / "best.pt"), "--device", "nonsense"])
    with pytest.raises(InputError, match="Is a directory"):
        run_command(["train", str(tmp_path)])
    (tmp_path / "scan.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        run_command(["train", str(tmp_path / "scan.toml")])
    assert not run.exists()


def test_packaged_configurations_go_by_their_names(tmp_path, monkeypatch):
    assert find_config("demo").name == "demo.toml"
    assert load_config(find_config("rooms")).data.kind == "rooms"
    # A folder of that name, such as a demo's output, does not hide it.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert find_config("demo").name == "demo.toml"
    with pytest.raises(InputError, match=r"no configuration file nowhere; .*demo.*rooms"):
        find_config("nowhere")


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_saves_and_says_how_to_go_on(config_file, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "dela", "train", str(config_file), "-o", str(run)]
    process = subprocess.Popen(
        [*command, "--set", "train.epochs=10000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while not (run / "last.pt").exists() and process.poll() is None:
        assert time.monotonic() < deadline, "no epoch finished in time"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(errors.strip().splitlines()) == 1
    assert "interrupted after step" in errors and "--resume" in errors
    assert not list(run.glob(".*"))


@pytest.mark.parametrize(
    "words", [["train"], ["data", "prepare"], ["data", "info"], ["summary"], ["room"]]
)
def test_help_shows_two_examples_a_line_each(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run_command([*words, "--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    examples = [line for line in lines if line.startswith("$ ")]
    assert len(examples) == 2 and all(f"dela {' '.join(words)} " in line for line in examples)
    assert lines[lines.index(examples[0]) - 2] == "Examples:"
    assert lines[lines.index(examples[0]) + 1] == examples[1]
