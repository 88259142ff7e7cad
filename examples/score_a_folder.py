"""Labeled scans scored with a checkpoint, an exported file or an engine; the worst come first.

`dela eval` prints the scores of all scans together; this tells which scans to look at.

    python examples/score_a_folder.py model.onnx scans/ classification
"""

import sys

from dela.cloud.formats import find_scans, read_cloud
from dela.runtime import Predictor, load_backend
from dela.runtime.predict.labelled import classes_of_codes, column_of, score


def main(model: str, folder: str, column: str) -> list[tuple[float, str]]:
    """Mean IoU and path of every scan, ascending; labels are the column's codes."""
    predictor = Predictor(load_backend(model))
    classes = predictor.config.classes
    found = []
    for path in find_scans([folder]):
        scan = read_cloud(path)
        truth = classes_of_codes(column_of(scan, column), classes, {})
        prediction = predictor.predict(scan, drop_invalid=True)
        found.append((score(truth, prediction.classes, len(classes)).miou, str(path)))
    return sorted(found)


if __name__ == "__main__":
    for miou, name in main(*sys.argv[1:4]):
        print(f"{100 * miou:6.2f} %  {name}")
