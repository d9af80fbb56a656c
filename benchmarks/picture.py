"""Makes README's picture of TensorBoard: a real run, killed and started again, a real server, and headless Chromium.

    make picture

Chromium comes from Debian: apt-get install chromium-headless-shell
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).parent.parent / "tensorboard.png"
BROWSERS = ("chromium-headless-shell", "chromium")
SIZE = "1500,1020"  # pixels
DRAWING_SECS = 20  # of the browser's own clock
TRIES = 5
HEADER, CURVE = 100, 1000  # pixels: the height of TensorBoard's own bar; the coloured ones of a few curves at the least
PAGE = (
    "/?pinnedCards=%5B%5D&tagFilter=epoch_accuracy%7Cepoch_loss%7Cbatch_loss%7Csamples_per_second%24%7Cgoodput%7Cblocked#timeseries"
)


def main() -> int:
    """Returns the exit code: 2 where there is no browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"error: none of {', '.join(BROWSERS)} is installed: apt-get install {BROWSERS[0]}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as directory:
        _train(Path(directory, "mnist"))
        port = _free_port()
        command = [
            "-m",
            "tensorboard.main",
            "--logdir",
            f"{directory}/mnist/tensorboard",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        server = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_for(f"http://127.0.0.1:{port}/data/plugin/scalars/tags")
            for _ in range(TRIES):
                image = _photograph(browser, f"http://127.0.0.1:{port}{PAGE}", directory)
                if _shows_curves(image):
                    break
            else:
                print(
                    f"error: in {TRIES} tries the page was not drawn in {DRAWING_SECS} s. {PICTURE} is as before.", file=sys.stderr
                )
                return 1
            image.quantize().save(PICTURE, optimize=True)  # a third of the size
        finally:
            server.terminate()
            server.wait()
    print(f"{PICTURE} ({PICTURE.stat().st_size / 1e3:.0f} kB)")
    return 0


def _train(workdir):
    command = [sys.executable, "-m", "recipes.mnist", "--workdir", str(workdir)]
    first = subprocess.Popen(command)
    while first.poll() is None and not (workdir / "checkpoints" / "model_batch_at_00100.weights.h5").exists():
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    subprocess.run(command, check=True)


def _wait_for(url):
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                if b"epoch_loss" in answer.read():
                    return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit("error: TensorBoard did not come up within a minute")


def _photograph(browser, url, folder):
    path = f"{folder}/page.png"
    command = [
        browser,
        "--headless",
        "--disable-3d-apis",  # then TensorBoard draws its curves as SVG, which are there when the picture is taken
        "--hide-scrollbars",
        f"--user-data-dir={folder}/browser",
        f"--window-size={SIZE}",
        f"--virtual-time-budget={DRAWING_SECS * 1000}",
        f"--screenshot={path}",
        url,
    ]
    if os.geteuid() == 0:
        command.insert(1, "--no-sandbox")  # Chromium's sandbox refuses root
    subprocess.run(command, check=True, timeout=180, stderr=subprocess.DEVNULL)
    return Image.open(path).convert("RGB")


def _shows_curves(image):
    """Whether there is colour below the bar: on a slow machine the page may be empty, or a frame without its curves."""
    saturation = image.crop((0, HEADER, *image.size)).convert("HSV").getchannel("S").histogram()
    return sum(saturation[128:]) > CURVE


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
