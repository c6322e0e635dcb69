"""Predict images x models x views into a Parquet folder per member: resumable, on this machine or on a Ray cluster.

    listing = list_images(folder, ids)                      # ids and files; every mismatch is an error
    models = [read_model(path) for path in paths]           # checked before onnxruntime sees them
    boxes = select_boxes(models, boxes, listing)            # face boxes, where a model needs them
    sessions = [start_session(model, device) for model in models]
    for part in pending_parts(folders, listing):            # 256 images each; finished ones are kept
        photos = [decode(file) for file in part]            # once for all models and views
        for model, session in zip(models, sessions):
            pixels = resize(photos, model.card.preprocess)  # once per distinct preprocessing
            logits = {view: session.run(view(pixels)) for view in views}
            write_part(folder / model.member, part, logits) # in the background, atomically
    write_complete(folders)                                 # last: the folder now counts as finished

The function is `predict` in `ensemble.predict.predict`; it can be imported from here.
"""

from ensemble.predict.predict import predict

__all__ = ["predict"]
