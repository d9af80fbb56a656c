"""Makes the README's picture of TensorBoard from a real run that is killed and restarted, with headless Chromium.

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
import urllib.parse
import urllib.request
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).parent.parent / "tensorboard.png"
BROWSERS = ("chromium-headless-shell", "chromium")
SIZE = "1900,980"  # pixels
DRAWING_SECS = 20  # of the browser's virtual clock
TRIES = 5
CHECKPOINTS = 5  # that the run has saved when it is killed
HEADER, CURVE = 100, 1000  # pixels: the height of TensorBoard's header; the least number of colored pixels of a few curves
CURVES = ("batch_loss$", "epoch_accuracy", "goodput", "blocked", "data_wait", "restarts")
PAGE = f"/?pinnedCards=%5B%5D&tagFilter={urllib.parse.quote('|'.join(CURVES))}#timeseries"


def main() -> int:
    """Makes the picture. Returns the exit code: 2 without a browser."""
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
                    f"error: the page was not drawn within {DRAWING_SECS} s in {TRIES} tries. {PICTURE} is unchanged.",
                    file=sys.stderr,
                )
                return 1
            image.quantize().save(PICTURE, optimize=True)  # a third of the size
        finally:
            server.terminate()
            server.wait()
    print(f"{PICTURE} ({PICTURE.stat().st_size / 1e3:.0f} kB)")
    return 0


def _train(workdir):
    command = [sys.executable, "-m", "recipes.mnist", "--epochs", "30", "--workdir", str(workdir)]
    first = subprocess.Popen(command)
    while first.poll() is None and len(list(workdir.glob("checkpoints/*.h5"))) < CHECKPOINTS:
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
    raise SystemExit("error: TensorBoard did not start within a minute")


def _photograph(browser, url, folder):
    path = f"{folder}/page.png"
    command = [
        browser,
        "--headless",
        "--disable-3d-apis",  # so that TensorBoard draws curves as SVG, which the screenshot contains
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
    """Returns whether there is color below the header: on a slow machine, the page may be empty or lack its curves."""
    saturation = image.crop((0, HEADER, *image.size)).convert("HSV").getchannel("S").histogram()
    return sum(saturation[128:]) > CURVE


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
