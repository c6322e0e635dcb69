"""Predict images x models x views into a Parquet folder per member: resumable, on this machine or on a Ray cluster.

    listing = list_images_at(images, ids)                   # ids and files; every mismatch is an error
    models = [read_model(path) for path in paths]           # checked before onnxruntime sees them
    inputs = Inputs(listing, select_boxes(models, boxes, listing), views)
    stores = [PartStore(model, folder) for model in models]
    resume(stores, listing)                                 # finished parts are kept, those of another run refused
    sessions = start_sessions(models, device)
    for part in pending(stores):                            # `run_slices`: 256 images each
        images = [decode(file) for file in part]            # once for all models and views
        for store, session in zip(stores, sessions):
            pixels = resize(images, session.preprocess)     # once per distinct preprocessing
            logits = {view: session.run(view(pixels)) for view in views}
            store.write(part, logits)                       # in the background, atomically
    for store in stores:
        store.finish()                                      # last: the folder now counts as finished

The function is `predict` in `ensemble.predict.predict`; it can be imported from here, as can its `RunOptions`.
"""

from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict

__all__ = ["RunOptions", "predict"]
