"""Find, decode, crop and resize the images of a run, and augment them at test time (views).

Training, verification of an export and prediction share this one image path.
"""
