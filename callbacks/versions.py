"""The versions of TensorFlow and Keras that the tests run on."""

import logging

# The first and the last release of each, with all between them; `make test-versions` runs them in pairs of their time.
TENSORFLOW = ((2, 17), (2, 21))
KERAS = ((3, 5), (3, 15))


def _text(tested: tuple[tuple[int, int], tuple[int, int]]) -> str:
    return " to ".join(f"{major}.{minor}" for major, minor in tested)


TESTED = f"TensorFlow {_text(TENSORFLOW)} with Keras {_text(KERAS)}"


def say_if_untested(tensorflow: str, keras: str) -> None:
    """Logs one line where a version is outside the range that is tested.

    Args:
        tensorflow, keras: the versions, as `"2.21.0"`.
    """
    if not (_is_within(tensorflow, TENSORFLOW) and _is_within(keras, KERAS)):
        logging.getLogger(__package__).warning(
            f"callbacks: TensorFlow {tensorflow} with Keras {keras} is not tested. Tested: {TESTED}, in pairs of their time."
        )


def _is_within(version: str, tested: tuple[tuple[int, int], tuple[int, int]]) -> bool:
    first, last = tested
    major, minor, *_ = version.split(".")
    return first <= (int(major), int(minor)) <= last
