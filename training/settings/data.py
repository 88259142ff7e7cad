"""``[data]`` of the training configuration: where samples come from and what their labels mean."""

from __future__ import annotations

from dataclasses import dataclass

from dela.cloud.formats.columns import column_list
from dela.errors import ConfigError, InputError
from dela.model.class_names import CLASS_CODES, CLASS_NAMES
from dela.training.settings.ranges import at_least, between

KINDS = ("prepared", "folder", "rooms")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ClassMap:
    """One class of a labelled dataset.

    Attributes:
        name: shown in tables.
        codes: label values in the files that belong to it.
        code: value written by predictions; the first of ``codes`` when None.
        color: RGB 0-255; a color of the palette when None.
    """

    name: str
    codes: tuple[int, ...]
    code: int | None = None
    color: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if not self.codes:
            raise ConfigError(
                f"class {self.name!r} has no codes; list the label values it stands for"
            )
        if self.color is not None and not all(0 <= c <= 255 for c in self.color):
            raise ConfigError(f"class {self.name!r}: color {list(self.color)} is not RGB in 0..255")


@dataclass(frozen=True)
class DataConfig:
    """``[data]``: where samples come from and how large they are.

    Attributes:
        kind: ``prepared`` (a folder made by ``dela data prepare``), ``folder`` (labelled LAS, LAZ,
            PLY, NPZ files) or ``rooms`` (generated indoor scans).
        root: folder that relative paths start from; the TOML file's own folder when empty. For
            ``prepared`` the prepared folder itself.
        train, val, test: files, folders or globs of each split (``folder``); names or globs of
            prepared scans (``prepared``), where an empty list is the split the folder itself names.
        join: the files of a split are parts of one scene, as the tiles of a survey (``folder``).
        context: files, folders or globs whose points surround the validation and test scans, as far
            as a tile's margin; their labels are never read (``folder``).
        label: column holding the class (``folder``).
        columns: names for the columns of text tables and arrays, in the files' order, such as
            ``["x", "y", "z", "intensity", "label"]``; by the files when empty (``folder``).
        classes: the class map; rooms bring their own 13 classes. In the file also the name of a
            public dataset, for its classes in order (``classes = "s3dis"``).
        ignore: label values that take part as points but are neither trained on nor scored.
        train_rooms, val_rooms, test_rooms: how many rooms each split has (``rooms``).
        room_points: about how many points a generated room has.
        first_seed: seed of the first training room; validation and test rooms follow 10,000 and
            20,000 later.
        points: most points (voxels) in a training sample: the ones nearest a random center.
        eval_points: most points (voxels) in one run when scoring; larger scans are cut into tiles.
        margin: meters of surroundings a tile carries beyond the part it answers for; 4 voxels of
            the coarsest stage when None.
        balance: share of training samples centered on a class drawn evenly instead of on any point.
        passes: samples taken from every scan in an epoch, scans in random order; 0 draws places
            instead of scans, so many that the samples together hold as many points as the data.
    """

    kind: str = "folder"
    root: str = ""
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    join: bool = False
    context: tuple[str, ...] = ()
    label: str = "classification"
    columns: tuple[str, ...] = ()
    classes: tuple[ClassMap, ...] = ()
    ignore: tuple[int, ...] = ()
    train_rooms: int = 24
    val_rooms: int = 3
    test_rooms: int = 3
    room_points: int = 200_000
    first_seed: int = 0
    points: int = 16_000
    eval_points: int = 60_000
    margin: float | None = None
    balance: float = 0.0
    passes: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"data.kind is {self.kind!r}; it must be {', '.join(KINDS)}")
        for name in ("points", "eval_points", "train_rooms"):
            at_least(f"data.{name}", getattr(self, name), 1)
        at_least("data.room_points", self.room_points, 1000)
        for name in ("val_rooms", "test_rooms", "first_seed", "passes"):
            at_least(f"data.{name}", getattr(self, name), 0)
        if self.columns:
            try:
                column_list(self.columns)
            except InputError as error:
                raise ConfigError(f"data.columns: {error}") from error
        between("data.balance", self.balance, 0, 1)
        if self.margin is not None:
            at_least("data.margin", self.margin, 0)
        if self.kind == "rooms":
            if self.classes or self.ignore:
                raise ConfigError(
                    "data.classes and data.ignore are not for generated rooms; remove them"
                )
            return
        if not self.classes:
            raise ConfigError(
                "data.classes is empty; name the classes as [[data.classes]] with name and codes"
            )
        owner: dict[int, str] = dict.fromkeys(self.ignore, "data.ignore")
        for info in self.classes:
            for code in info.codes:
                if code in owner:
                    raise ConfigError(
                        f"label {code} belongs to {owner[code]} and to {info.name}; keep one"
                    )
                owner[code] = info.name


def named_classes(name: str) -> list[dict[str, object]]:
    """``data.classes`` of a public dataset, as if written out: label 0, 1, 2 ... in order, and
    predictions in the dataset's own codes.

    Raises:
        ConfigError: no dataset of this name.
    """
    if name not in CLASS_NAMES:
        raise ConfigError(
            f"data.classes is {name!r}; give [[data.classes]] or one of {', '.join(CLASS_NAMES)}"
        )
    names = CLASS_NAMES[name]
    written = CLASS_CODES.get(name, range(len(names)))
    return [
        {"name": text, "codes": [label], "code": code}
        for label, (text, code) in enumerate(zip(names, written, strict=True))
    ]
