"""Running networks on scans: backends, predictor, parity, pictures.

Imports neither torch nor ONNX Runtime until a backend that needs it is loaded.
"""

from dela.runtime.backends.base import Backend, load_backend
from dela.runtime.predict.predictor import Prediction, Predictor

__all__ = ["Backend", "Prediction", "Predictor", "load_backend"]
