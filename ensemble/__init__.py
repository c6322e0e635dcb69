"""Turn trained image classifiers into a contest submission.

photographs -> checkpoints/ -> .safetensors -> exporters/ -> .onnx -> ensemble/ -> predictions -> submission.csv
imports:       exporters  --->  checkpoints  --->  ensemble            (never the other way)

One model from Python:

    import ensemble

    model = ensemble.load("r18.onnx")
    model("photo.jpg").label

The names below are imported when they are first used: ``import ensemble`` by itself loads no numpy and no onnxruntime.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ensemble.errors import EnsError
    from ensemble.images.face_boxes import Box
    from ensemble.predict.model import Model, Prediction, load

    __version__: str

__all__ = ["Box", "EnsError", "Model", "Prediction", "__version__", "load"]

_MODULE_OF = {
    "Box": "ensemble.images.face_boxes",
    "EnsError": "ensemble.errors",
    "Model": "ensemble.predict.model",
    "Prediction": "ensemble.predict.model",
    "load": "ensemble.predict.model",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # mypy then knows the names above, and no others

    def __getattr__(name: str) -> object:
        import importlib

        if name == "__version__":
            import importlib.metadata

            value = importlib.metadata.version("ens-onnx")
        elif name in _MODULE_OF:
            value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value
