"""scikit-learn's handwritten digits (UCI, Alpaydin and Kaynak 1998): 1,797 images of 8×8 pixels, no download."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from actsearch.data.source import Source, divide


def digits(split_seed: int = 0) -> Source:
    """Ten classes of 1×8×8 pixels from 0 to 16, divided 80/20 into training and test, the same for every run."""
    images, labels = load_digits(return_X_y=True)
    train, test = divide(images.reshape(-1, 1, 8, 8).astype(np.uint8), labels, split_seed)
    return Source("digits (8×8)", train, test, num_classes=10)
