"""What a run tells: its opening line, a line an epoch, rows of ``metrics.csv``, final scores."""

from __future__ import annotations

from typing import Any

from dela.training.evaluate.split import Scores
from dela.training.run.setup import RunData
from dela.training.run.state import TrainingState
from dela.training.settings.train import TrainConfig


def measure(config: TrainConfig) -> str:
    """The score by which the best network is chosen: ``miou``, for part segmentation
    ``instance_miou``, for whole clouds ``oa``."""
    if config.model.categories:
        return "instance_miou"
    return "oa" if config.model.task == "classification" else "miou"


def chosen_score(config: TrainConfig, scores: Scores) -> float:
    """The value of :func:`measure`."""
    source = scores.confusion if scores.parts is None else scores.parts
    return float(getattr(source, measure(config)))


def class_names(config: TrainConfig) -> list[str]:
    """Names of the classes, in label order."""
    return [info.name for info in config.model.classes]


def opening_line(
    config: TrainConfig, data: RunData, state: TrainingState, half: bool, processes: int
) -> str:
    """What is trained on what, and for how long.

    Args:
        half: the dense layers compute in bfloat16.
        processes: that train together.
    """
    schedule = config.train
    validated = "none" if data.validation is None else str(len(data.validation.scans))
    batches = f"{schedule.batch_size} x "
    if schedule.accumulate > 1:
        batches = f"{schedule.accumulate} x {batches}"
    if processes > 1:
        batches = f"{processes} processes x {batches}"
    points = config.model.points[0] if config.model.points else config.data.points
    went = f", resumed at step {state.step}" if state.step else ""
    return (
        f"{_size(state)}, {config.model.num_classes} classes; {len(data.training.scans)} scans to "
        f"train, {validated} to validate; {data.total_steps} steps of {batches}{points:,} points "
        f"in {'bf16' if half else 'fp32'}{went}"
    )


def _size(state: TrainingState) -> str:
    """How many parameters there are, and how many of them are trained."""
    parameters = list(state.model.parameters())
    count = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    size = f"{_count(count)} parameters"
    if trained == count:
        return size
    # float32, and AdamW keeps two moments beside a gradient.
    kept = 3 * 4 * trained / 2**20
    return f"{size} ({_count(trained)} of them trained), {kept:.1f} MiB of gradients and moments"


def log_row(
    config: TrainConfig, state: TrainingState, epoch: int, scores: Scores | None
) -> dict[str, Any]:
    """One line of ``metrics.csv``; scores without a validation are None."""
    totals = state.totals
    row: dict[str, Any] = {
        "epoch": epoch,
        "step": state.step,
        "seconds": totals.seconds,
        "learning_rate": state.learning_rate,
        **totals.means(),
        "train_oa": totals.confusion.oa,
        "train_miou": totals.confusion.miou,
    }
    confusion = None if scores is None else scores.confusion
    for name in ("oa", "macc", "miou"):
        row[f"val_{name}"] = None if confusion is None else getattr(confusion, name)
    if config.model.categories:
        row["val_instance_miou"] = None if scores is None else chosen_score(config, scores)
    kind = "accuracy" if config.model.task == "classification" else "iou"
    for number, name in enumerate(class_names(config)):
        score = None if confusion is None else float(getattr(confusion, kind)[number])
        row[f"val_{kind}_{name}"] = score
    return row


def epoch_line(
    config: TrainConfig, row: dict[str, Any], scores: Scores | None, best: float | None
) -> str:
    """What the log says at the end of an epoch."""
    text = f"epoch {row['epoch']}/{config.train.epochs}: loss {row['loss']:.3f}, train accuracy "
    text += f"{row['train_oa']:.3f}"
    whole_clouds = config.model.task == "classification"
    if not whole_clouds:
        text += f" mIoU {row['train_miou']:.3f}"
    if scores is not None and best is not None:
        label, key = ("class mean", "macc") if whole_clouds else ("mIoU", "miou")
        if config.model.categories:
            label, key = "mIoU over objects", "instance_miou"
        text += f", validation accuracy {row['val_oa']:.3f} {label} {row[f'val_{key}']:.3f}"
        text += f" (best {best:.3f})"
    return f"{text}, {row['seconds']:.1f} s"


def final_scores(
    config: TrainConfig, state: TrainingState, scores: Scores | None, row: dict[str, Any]
) -> dict[str, Any]:
    """The contents of ``metrics.json`` after an epoch."""
    return {
        "steps": state.step,
        "epochs": row["epoch"],
        "loss": row["loss"],
        "train_oa": row["train_oa"],
        "train_miou": row["train_miou"],
        "best": state.best,
        "best_measure": measure(config),
        "validation": None if scores is None else scores.to_dict(class_names(config)),
    }


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number / 1e3:.1f} k"
