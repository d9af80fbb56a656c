"""`recipes.transformer_lm` with default flags, compared with compressors: bits per byte of held-out files (half an hour).

The compressors read all of these bytes and adapt to them. The model sees at most the 256 bytes before the one that it predicts, and
never trains on any of them.
"""

import gzip
import lzma
import subprocess
import sys
import tempfile
import time

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipes.common.data.tokens import standard_library

CONTEXT = 256


def main() -> None:
    """Prints the results of the compressors, and of each validation."""
    text = standard_library(CONTEXT)[1].tokens.tobytes()
    print(f"bits per byte of {len(text)} held-out bytes of Python's standard library")
    for name, compressed in (("gzip -9", gzip.compress(text, 9)), ("xz -9", lzma.compress(text, preset=9))):
        print(f"{name:<24}{8 * len(compressed) / len(text):>8.3f}")
    with tempfile.TemporaryDirectory() as workdir:
        began = time.time()
        command = [sys.executable, "-m", "recipes.transformer_lm", "--workdir", workdir, "--log-secs", "1e9"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        curve = EventAccumulator(f"{workdir}/tensorboard/validation").Reload().Scalars("epoch_bits_per_byte")
    for point in curve:
        print(f"{f'batch {point.step}, {(point.wall_time - began) / 60:.1f} min':<24}{point.value:>8.3f}")


if __name__ == "__main__":
    main()
