"""Builds Horovod once for the installed TensorFlow, and installs it.

    python -m launch.horovod.build          # Gloo: collectives on the CPU, also for tensors on GPUs
    python -m launch.horovod.build --gpu    # NCCL and Gloo; GPU_UNPROVEN says what was not tested

The source is Horovod's sdist on PyPI, verified by its SHA-256, with horovod.patch. The wheel and its build log are cached in
`~/.cache/keras-distributed-recipes/`, in a folder for each (Python, TensorFlow, flags, patch).
"""

import argparse
import contextlib
import glob
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from launch import exit_codes

VERSION = "0.28.1"
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
TOOLS = ("g++", "make", "patch")
NEEDS_TOOLS = exit_codes.BAD_INPUT  # the machine has no compiler; `make test` continues without Horovod

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
PATCH = Path(__file__).parent / "horovod.patch"

FLAGS = {
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_MPI": "1",
    "HOROVOD_CPU_OPERATIONS": "GLOO",
    "LDFLAGS": "-Wl,-s",  # without symbols the library takes 3 MB instead of 51 MB
}
GPU_FLAGS = {
    "HOROVOD_GPU_OPERATIONS": "NCCL",
    "HOROVOD_NCCL_LINK": "SHARED",
    "HOROVOD_BUILD_CUDA_CC_LIST": "75,80,90,100,120",  # compute capabilities that nvcc 12 and 13 both know
    "NVCC_APPEND_FLAGS": "--no-compress",
    "LDFLAGS": r"-Wl,-s -Wl,-rpath,\$ORIGIN/../../nvidia/nccl/lib",
}
GPU_UNPROVEN = (
    "This build with NCCL was tested on one GPU (NVIDIA H200, NCCL 2.32.3), with one rank and with two ranks that share the GPU: "
    "collectives, the order of streams, and a recipe that ends as on a CPU. Several GPUs or hosts, and the speed, are not proven."
)
# PyPI has no nvcc 12 (nvidia-cuda-nvcc-cu12 is ptxas and headers)
NVCC = ("nvidia-cuda-nvcc==13.0.88", "nvidia-cuda-crt==13.0.88", "nvidia-nvvm==13.0.88")


def main() -> int:
    """Installs Horovod; builds it first if the cache has no wheel. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.horovod.build", description="Builds and installs Horovod.")
    parser.add_argument("--gpu", action="store_true", help="build with NCCL, for TensorFlow with its CUDA libraries")
    gpu = parser.parse_args().gpu
    folder = cache_folder(gpu)
    if not glob.glob(f"{folder}/*.whl"):
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing:
            print(f"Horovod is not built: it needs {', '.join(missing)}. {how_to_install(missing)}", file=sys.stderr)
            return NEEDS_TOOLS
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix="horovod-") as work, open(folder / "build.log", "wb") as log:
                build(Path(work), folder, log, gpu)
        except subprocess.CalledProcessError as error:
            print(f"error: Horovod was not built: {error}. The last lines of {folder}/build.log:", file=sys.stderr)
            print(*(folder / "build.log").read_text(errors="replace").splitlines()[-15:], sep="\n", file=sys.stderr)
            return exit_codes.FAILED
    pip("install", "--find-links", folder, "--requirement", REQUIREMENTS)
    # pip regards another build of the same version, with or without NCCL, as installed.
    pip("install", "--force-reinstall", "--no-deps", *glob.glob(f"{folder}/*.whl"))
    if gpu:
        print(GPU_UNPROVEN)
    return exit_codes.DONE


def cache_folder(gpu: bool) -> Path:
    """Returns the cache folder for this Python, TensorFlow, flags and patch."""
    content = json.dumps([SDIST_SHA256, flags(gpu)]).encode() + PATCH.read_bytes()
    python, tensorflow = sysconfig.get_python_version(), importlib.metadata.version("tensorflow")
    name = f"horovod-{VERSION}-py{python}-tf{tensorflow}-{'nccl' if gpu else 'gloo'}-{hashlib.sha256(content).hexdigest()[:8]}"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "keras-distributed-recipes" / name


def flags(gpu: bool) -> dict[str, str]:
    """Returns the variables that Horovod's setup.py reads from the environment."""
    local = f"tf{importlib.metadata.version('tensorflow')}" + (".nccl" if gpu else "")
    return {**FLAGS, **(GPU_FLAGS if gpu else {}), "HOROVOD_LOCAL_VERSION": local}


def how_to_install(tools: list[str]) -> str:
    """Returns how to install tools on Debian and Ubuntu."""
    return f"On Debian and Ubuntu: apt-get install {' '.join(tools)}"


def build(work: Path, folder: Path, log: BinaryIO, gpu: bool) -> None:
    """Builds the wheel in a working folder, and moves it into the cache atomically.

    Raises:
        subprocess.CalledProcessError: if a step fails; the log contains the reason.
    """
    pip("install", "--constraint", REQUIREMENTS, "setuptools", "wheel", "packaging", "cmake", log=log)
    checked = work / "requirements.txt"
    checked.write_text(f"horovod=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
    alone = ("--no-deps", "--no-build-isolation")
    pip("download", *alone, "--no-binary", "horovod", "--require-hashes", "-r", checked, "--dest", work, log=log)
    with tarfile.open(work / f"horovod-{VERSION}.tar.gz") as sdist:
        sdist.extractall(work, filter="data")
    source = work / f"horovod-{VERSION}"
    with open(PATCH, "rb") as patch:
        subprocess.run(["patch", "-p1"], cwd=source, stdin=patch, stdout=log, stderr=log, check=True)

    environment = {
        **os.environ,
        **flags(gpu),
        **(cuda(work) if gpu else {}),
        "HOROVOD_CMAKE": os.path.join(sysconfig.get_path("scripts"), "cmake"),
        "MAKEFLAGS": f"-j{len(os.sched_getaffinity(0))}",
    }
    step = [sys.executable, "-m", "pip", "wheel", "-v", *alone, "--no-cache-dir", "--wheel-dir", str(work), str(source)]
    with subprocess.Popen(step, env=environment, stdout=log, stderr=log) as process:
        show_progress(process, folder / "build.log")
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, "pip wheel")
    (wheel,) = work.glob("*.whl")
    arriving = folder / f".{wheel.name}.{os.getpid()}"
    shutil.copy(wheel, arriving)
    os.replace(arriving, folder / wheel.name)


def show_progress(process: subprocess.Popen, log: Path) -> None:
    """Shows the progress of the compiler until the process ends; on a terminal, in one line that is redrawn."""
    began = time.monotonic()
    print(f"Building Horovod {VERSION}, once: 2 to 10 minutes. Log: {log}", flush=True)
    while process.poll() is None:
        if sys.stdout.isatty():
            percent = re.findall(rb"\[ *(\d+%)\]", log.read_bytes())
            print(f"\rcompiled {percent[-1].decode() if percent else '0%'} ", end="", flush=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
    start = "\r" if sys.stdout.isatty() else ""
    print(f"{start}{'failed' if process.returncode else 'built'} after {time.monotonic() - began:.0f} s", flush=True)


def cuda(work: Path) -> dict[str, str]:
    """Returns where Horovod finds CUDA and NCCL: the toolkit in CUDA_HOME, or one assembled from NVIDIA's wheels.

    The assembled toolkit has libraries, headers and ptxas of CUDA 12, which TensorFlow installs, and the compiler of CUDA 13.
    """
    site = Path(sysconfig.get_path("purelib"))
    nvidia = site / "nvidia"
    nccl = work / "nccl"
    (nccl / "lib").mkdir(parents=True)
    (nccl / "include").symlink_to(nvidia / "nccl" / "include")
    (nccl / "lib" / "libnccl.so").symlink_to(nvidia / "nccl" / "lib" / "libnccl.so.2")
    found = {"HOROVOD_NCCL_HOME": str(nccl)}
    if "CUDA_HOME" in os.environ:
        return {**found, "HOROVOD_CUDA_HOME": os.environ["CUDA_HOME"]}

    pip("install", "--no-deps", "--target", work / "nvcc", *NVCC)
    compiler, runtime = work / "nvcc" / "nvidia" / "cu13", nvidia / "cuda_runtime"
    headers = site / "tensorflow" / "include" / "third_party" / "gpus" / "cuda"
    home = work / "cuda"
    include = [*(runtime / "include").iterdir(), compiler / "include" / "crt", compiler / "include" / "fatbinary_section.h"]
    include += [headers / "libcudacxx" / "include" / "nv", headers / "include" / "nvtx3"]
    links = {"bin": [*(compiler / "bin").iterdir()], "include": include, "lib64": [*(runtime / "lib").iterdir()]}
    for name, targets in links.items():
        (home / name).mkdir(parents=True)
        for target in targets:
            (home / name / target.name).symlink_to(target)
    (home / "nvvm").symlink_to(compiler / "nvvm")
    (home / "lib64" / "libcudart.so").symlink_to("libcudart.so.12")
    # nvcc 13 writes PTX version 9.0, which ptxas 12 rejects; Horovod's kernels do not need its features.
    ptxas = home / "bin" / "ptxas"
    ptxas.unlink()
    ptxas.write_text(
        "#!/bin/bash\n"
        'for file; do case $file in *.ptx) sed -i "s/^[.]version 9.*/.version 8.8/" "$file";; esac; done\n'
        f'exec "{nvidia}/cuda_nvcc/bin/ptxas" "$@"\n'
    )
    ptxas.chmod(0o755)
    return {**found, "HOROVOD_CUDA_HOME": str(home)}


def pip(command: str, *arguments: object, log: BinaryIO | None = None) -> None:
    """Runs pip of this Python."""
    quiet = ("--quiet", "--no-input", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", command, *quiet, *map(str, arguments)], stdout=log, stderr=log, check=True)


if __name__ == "__main__":
    sys.exit(main())
