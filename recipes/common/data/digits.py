"""Handwritten digits that come with this repository, so that a first training needs no download.

`digits.csv.gz` is the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine
Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0): a line for each image, its 64 pixels and its label.
"""

from pathlib import Path

import numpy as np

BRIGHTEST = 16
_FILE = Path(__file__).with_name("digits.csv.gz")


def load_digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """1437 images for training and 360 for validation, every fifth.

    Returns:
        `(images, labels), (images, labels)`, as `keras.datasets` has it: images `[n, 8, 8]`, float64, whole numbers from 0 to
        `BRIGHTEST`; labels `[n]`, int64, 0 to 9.

    Example:
        >>> (images, labels), _ = load_digits()
        >>> images.shape, labels[:4]
        ((1437, 8, 8), array([1, 2, 3, 4]))
    """
    table = np.loadtxt(_FILE, delimiter=",")  # [1797, 65]
    images, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype("int64")
    validates = np.arange(len(labels)) % 5 == 0
    return (images[~validates], labels[~validates]), (images[validates], labels[validates])
