"""Class names of the public datasets, in the order of their labels 0, 1, 2 .., and what their own
files write for each."""

from __future__ import annotations

S3DIS_CLASSES = "ceiling floor wall beam column window door table chair sofa bookcase board clutter"
SCANNET_CLASSES = (
    "wall floor cabinet bed chair sofa table door window bookshelf picture counter desk curtain "
    "refrigerator shower_curtain toilet sink bathtub otherfurniture"
)
SCANOBJECTNN_CLASSES = (
    "bag bin box cabinet chair desk display door shelf table bed pillow sink sofa toilet"
)
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

# Label values of the datasets' own files and benchmarks, where they are not 0, 1, 2 ...
CLASS_CODES: dict[str, tuple[int, ...]] = {
    "scannet": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39),
    "semantickitti": (10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81),
}
