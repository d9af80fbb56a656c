"""The tested versions of TensorFlow and Keras."""

import logging

# The first and last tested release of each. `make test-versions` tests each TensorFlow with a Keras of its time.
TENSORFLOW = ((2, 17), (2, 21))
KERAS = ((3, 5), (3, 15))


def _text(tested: tuple[tuple[int, int], tuple[int, int]]) -> str:
    return " to ".join(f"{major}.{minor}" for major, minor in tested)


TESTED = f"TensorFlow {_text(TENSORFLOW)} with Keras {_text(KERAS)}"


def warn_if_untested(tensorflow: str, keras: str) -> None:
    """Logs a line if a version is outside the tested range.

    Args:
        tensorflow, keras: the versions, as `"2.21.0"`.
    """
    if not (_is_within(tensorflow, TENSORFLOW) and _is_within(keras, KERAS)):
        logging.getLogger("callbacks").warning(
            f"callbacks: TensorFlow {tensorflow} with Keras {keras} is not tested. Tested: {TESTED}, in pairs of their time."
        )


def _is_within(version: str, tested: tuple[tuple[int, int], tuple[int, int]]) -> bool:
    first, last = tested
    major, minor, *_ = version.split(".")
    return first <= (int(major), int(minor)) <= last
