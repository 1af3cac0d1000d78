"""scikit-learn's handwritten digits (1,797 grey images, 8 x 8) in a fixed split.

A permutation with a fixed seed, made of this project's own integer arithmetic, so that it is the
same everywhere: the first 300 images are `labelled`, the last 600 are `test`. `transfer` is all
1,197 images that are not test, the labelled ones among them, without their labels.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from storage.order import permute

LABELLED, TEST, SPLIT_SEED = 300, 600, 20261124


def samples(split: str) -> pa.Table:
    """sample_id (the image's number), image [1, 8, 8] uint8 of 0 to 16, and label where it may be seen."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = permute(np.arange(len(images)), len(images), SPLIT_SEED)
    parts = {
        "labelled": order[:LABELLED],
        "transfer": order[:-TEST],
        "test": order[-TEST:],
    }
    if split not in parts:
        raise TypeError(f"split is '{split}', not one of {', '.join(parts)}")
    rows = parts[split]
    image = pa.FixedSizeListArray.from_arrays(pa.array(images[rows].astype(np.uint8).ravel()), 8)
    image = pa.FixedSizeListArray.from_arrays(image, 8)
    image = pa.FixedSizeListArray.from_arrays(image, 1)
    columns = {"sample_id": pa.array(rows), "image": image}
    if split != "transfer":
        columns["label"] = pa.array(labels[rows])
    return pa.table(columns)
