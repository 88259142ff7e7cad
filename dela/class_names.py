"""Class names of the public datasets, in the order of their labels 0, 1, 2 ..."""

from __future__ import annotations

from dela.config import S3DIS_CLASSES, SCANNET_CLASSES, SCANOBJECTNN_CLASSES

MODELNET40_CLASSES = (
    "airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser "
    "flower_pot glass_box guitar keyboard lamp laptop mantel monitor night_stand person piano "
    "plant radio range_hood sink sofa stairs stool table tent toilet tv_stand vase wardrobe xbox"
)
SEMANTICKITTI_CLASSES = (
    "car bicycle motorcycle truck other-vehicle person bicyclist motorcyclist road parking "
    "sidewalk other-ground building fence vegetation trunk terrain pole traffic-sign"
)
# Category -> how many parts it has; parts are numbered through in this order, 0 .. 49.
SHAPENETPART_CATEGORIES = {
    "airplane": 4,
    "bag": 2,
    "cap": 2,
    "car": 4,
    "chair": 4,
    "earphone": 3,
    "guitar": 3,
    "knife": 2,
    "lamp": 4,
    "laptop": 2,
    "motorbike": 6,
    "mug": 2,
    "pistol": 3,
    "rocket": 3,
    "skateboard": 3,
    "table": 3,
}

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "s3dis": tuple(S3DIS_CLASSES.split()),
    "scannet": tuple(SCANNET_CLASSES.split()),
    "scanobjectnn": tuple(SCANOBJECTNN_CLASSES.split()),
    "modelnet40": tuple(MODELNET40_CLASSES.split()),
    "shapenetpart": tuple(
        f"{category} {part}"
        for category, parts in SHAPENETPART_CATEGORIES.items()
        for part in range(1, parts + 1)
    ),
    "semantickitti": tuple(SEMANTICKITTI_CLASSES.split()),
}
