"""Start-up time of each recipe, from the command to the end of the first batch.

`imports` is Python's start and all imports; `import tensorflow, keras` is the part of these two alone. `data` is the time before
the recipe sets up its devices. `build` is the model, its optimizer and the datasets. `trace` is the time from the call of `fit` to
the end of the first batch, which TensorFlow traces and compiles. `a batch` is a later batch, for comparison. Two ranks start from
the launcher's command, and meet in `devices`.
"""

import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.ranks import command as ranks_command
from benchmarks.ranks import engines
from recipes._start import start as start_recipe

ROUNDS = 3
RECIPES = {  # name -> flags
    "mnist": [],
    "imagenet_resnet50": ["--data", "digits", "--image-size", "32"],
    "transformer_lm": ["--sample-tokens", "0"],
}
BATCHES = 4  # after which the process ends
_PARTS = ("imports", "data", "devices", "build", "trace")
_BARE = "import keras, time; print(time.time())"


def measure(name: str, began: float, flags: list[str]) -> None:
    """Runs a recipe until its fourth batch, and prints the times at which its parts ended.

    Args:
        name: the module name of the recipe, without `recipes.`.
        began: the time of the command, in seconds since 1970.
        flags: the flags of the recipe.
    """
    start_recipe()  # as `python -m recipes.NAME` does first
    module = importlib.import_module(f"recipes.{name}")
    moments = [began, time.time()]

    import keras

    get_distribution, fit = module.get_distribution, keras.Model.fit

    def timed_get_distribution(args):
        moments.append(time.time())
        distribution = get_distribution(args)
        moments.append(time.time())
        return distribution

    def end_of_batch(batch, logs):
        moments.append(time.time())
        if len(moments) == len(_PARTS) + BATCHES:
            print(json.dumps(moments), flush=True)
            os._exit(0)

    def timed_fit(self, *args, callbacks, **options):
        moments.append(time.time())
        return fit(self, *args, callbacks=[*callbacks, keras.callbacks.LambdaCallback(on_train_batch_end=end_of_batch)], **options)

    module.get_distribution, keras.Model.fit = timed_get_distribution, timed_fit
    module.main(flags)


def start(name: str, engine: str | None = None) -> list[float]:
    """Returns the seconds of each part of a start, and of a later batch; with an engine, of two ranks."""
    with tempfile.TemporaryDirectory() as workdir:
        what = ["benchmarks.startup", name, str(time.time()), *RECIPES[name], "--workdir", workdir]
        command = [sys.executable, "-m", *what]
        if engine:
            command = ranks_command(2, os.path.join(workdir, "logs"), *what, "--strategy", engine)
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    moments = json.loads(output[output.rindex("[1") :])  # the launcher adds a prefix
    spans = [end - begin for begin, end in itertools.pairwise(moments)]
    return [*spans[: len(_PARTS)], min(spans[len(_PARTS) :])]


def bare_imports() -> float:
    """Returns the seconds to start Python and import TensorFlow and Keras."""
    began = time.time()
    ended = subprocess.run([sys.executable, "-c", _BARE], check=True, capture_output=True, text=True).stdout
    return float(ended) - began


def main() -> None:
    """Prints the medians of each part."""
    print("seconds from command to first batch   all" + "".join(f"{part:>9}" for part in _PARTS) + "  a batch")
    starts: dict[str, tuple] = {name: (name,) for name in RECIPES}
    starts |= {f"mnist, {engine}, 2 ranks": ("mnist", engine) for engine in engines()}
    for name, arguments in starts.items():
        *parts, batch = (statistics.median(column) for column in zip(*(start(*arguments) for _ in range(ROUNDS)), strict=True))
        print(f"{name:<35}{sum(parts):>6.1f}" + "".join(f"{part:>9.2f}" for part in parts) + f"{batch:>9.3f}", flush=True)
    bare = statistics.median(bare_imports() for _ in range(ROUNDS))
    print(f"{'import tensorflow, keras':<35}{bare:>6.1f}{bare:>9.2f}")


if __name__ == "__main__":
    measure(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
