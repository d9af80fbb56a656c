"""The included handwritten digits, so that a first training needs no download.

`digits.csv.gz` is the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine
Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0): one line per image, with its 64 pixels and its label.
"""

from pathlib import Path

import numpy as np

BRIGHTEST = 16
_FILE = Path(__file__).with_name("digits.csv.gz")


def load_digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns 1437 images for training, and every fifth image, 360, for validation.

    Returns:
        `(images, labels), (images, labels)`, as in `keras.datasets`: images `[n, 8, 8]`, float64, whole numbers from 0 to
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
