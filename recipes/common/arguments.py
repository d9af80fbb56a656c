"""The flags of all recipes."""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from callbacks import GlobalStepCheckpoint, InputError
from callbacks.disk.listing import newest_first
from callbacks.disk.template import Template
from recipes.common.run_flags import begins_from

MOST_VIRTUAL_DEVICES = 256  # each needs a thread and a copy of the model
_LARGEST: dict[Callable[[str], Any], float] = {int: 2**31 - 1, float: 3.4e38}

_EXAMPLES = """examples:
  python -m recipes.{name} --workdir runs/longer --epochs 20           a separate run; start it again to resume
  python -m recipes.{name} --virtual-devices 2                         two replicas without GPUs
  python -m recipes.{name} --keep-last 3 --save-secs 600               at most three checkpoints, one every ten minutes
  python -m launch --nproc-per-node 2 -m recipes.{name}                two processes"""


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of each flag that has one."""

    def _get_help_string(self, action):
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises an `InputError` for a wrong flag."""

    _group: Any = None  # an argument group

    def begin_group(self, title: str) -> None:
        """Begins a group of flags in `--help`."""
        self._group = self.add_argument_group(title)

    def add_argument(self, *args, **kwargs):
        return self._group.add_argument(*args, **kwargs) if self._group else super().add_argument(*args, **kwargs)

    def error(self, message):
        raise InputError(f"{message} (--help lists the flags)")

    def parse_args(self, args=None, namespace=None):
        parsed = super().parse_args(args, namespace)
        for name, value in vars(parsed).items():
            if isinstance(value, str) and not _is_utf8(value):  # HDF5 and TensorFlow accept only UTF-8 file names
                raise InputError(f"--{name.replace('_', '-')} must be UTF-8. Received: {os.fsencode(value)!r}")
        return parsed


def recipe_parser(
    name: str,
    description: str,
    *,
    epochs: int,
    global_batch_size: int,
    learning_rate: float,
    base_batch_size: int | None = None,
    warmup_epochs: float = 0.0,
    save_freq: int | str = 50,
    keep_last: int | str = "all",
) -> argparse.ArgumentParser:
    """Returns a parser with the flags of all recipes and the defaults of one recipe.

    Args:
        name: the module name of the recipe, without `recipes.`.
        description: the first line of `--help`.
        epochs, global_batch_size, learning_rate, base_batch_size, warmup_epochs, save_freq, keep_last: the defaults.

    Returns:
        A parser, to which the recipe adds its own flags. Pass it to `parse`.
    """
    parser = Parser(
        prog=f"python -m recipes.{name}",
        description=description,
        epilog=_EXAMPLES.format(name=name),
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.begin_group("devices")
    parser.add_argument(
        "--strategy",
        choices=("auto", "single", "mirrored", "horovod", "multiworker"),
        default="auto",
        help="auto: for several ranks, horovod if it is installed, otherwise multiworker; for several GPUs or virtual devices in "
        "one process, mirrored; otherwise single",
    )
    parser.add_argument(
        "--virtual-devices",
        type=positive(int, most=MOST_VIRTUAL_DEVICES),
        metavar="N",
        help="split the CPU into N devices, to run distributed training without GPUs",
    )
    parser.begin_group("training")
    parser.add_argument("--workdir", type=os.path.expanduser, default=f"runs/{name}", help="directory of the run")
    parser.add_argument("--epochs", type=positive(int), default=epochs, metavar="N", help="planned end of training")
    parser.add_argument(
        "--global-batch-size",
        type=positive(int),
        default=global_batch_size,
        metavar="N",
        help="examples in one update over all replicas",
    )
    parser.add_argument("--learning-rate", type=positive(float), default=learning_rate, metavar="X", help="for the global batch")
    parser.add_argument(
        "--base-batch-size",
        type=positive(int),
        default=base_batch_size,
        metavar="N",
        help="batch size for which --learning-rate is given; the rate is scaled linearly to --global-batch-size",
    )
    parser.add_argument(
        "--warmup-epochs",
        type=not_negative(float, most=2**31 - 1),
        default=warmup_epochs,
        metavar="E",
        help="raise the rate over the first E epochs, from the rate before scaling, or from 0 without --base-batch-size",
    )
    parser.begin_group("checkpoints")
    parser.add_argument(
        "--save-freq",
        type=save_frequency,
        default=save_freq,
        metavar="N|epoch|auto",
        help="global batches between checkpoints; auto: choose the interval, for at most 1%% of the time",
    )
    parser.add_argument("--save-secs", type=positive(float), metavar="S", help="also save every S seconds")
    parser.add_argument(
        "--checkpoint",
        metavar="TEMPLATE",
        help="names of the checkpoints, with {batch} {epoch} {samples} {step} {replicas} or a metric; .weights.h5 or .keras "
        "(default: WORKDIR/checkpoints/model_batch_at_{batch:05d}.weights.h5)",
    )
    parser.add_argument(
        "--keep-last", type=number_or_all, default=keep_last, metavar="N|all", help="keep the N newest checkpoints, or all"
    )
    parser.add_argument("--keep-every", type=positive(int), metavar="N", help="keep one checkpoint for every N batches")
    parser.add_argument("--keep-best", type=positive(int), metavar="N", help="keep the N checkpoints with the lowest val_loss")
    parser.add_argument(
        "--resume",
        type=resume,
        default="auto",
        metavar="auto|never|PATH",
        help="auto: resume from the newest intact checkpoint; PATH: from this checkpoint (an older one needs another --workdir)",
    )
    parser.add_argument(
        "--init-from",
        metavar="PATH",
        help="start a new run with the weights of a checkpoint, or of the newest one of another run (its --workdir)",
    )
    parser.add_argument(
        "--skip-batches",
        type=batch_range,
        metavar="FIRST:LAST",
        help="leave batches out of the data order, because the loss spikes or becomes NaN; later batches move up. Checkpoints "
        "store the range",
    )
    parser.begin_group("curves and output")
    parser.add_argument(
        "--update-freq",
        type=batches_or_epoch,
        default=10,
        metavar="N|epoch",
        help="global batches between two points in TensorBoard",
    )
    parser.add_argument(
        "--profile-batches", type=batch_range, metavar="FIRST:LAST", help="global batches to profile for TensorBoard, on the chief"
    )
    parser.add_argument(
        "--peak-tflops",
        type=positive(float),
        metavar="X",
        help="peak TFLOP/s of a device, for its utilization in TensorBoard; known for NVIDIA's data center GPUs",
    )
    parser.add_argument(
        "--log-secs", type=positive(float), default=10.0, metavar="S", help="seconds between two lines, if the output is a file"
    )
    parser.begin_group("computation")
    parser.add_argument(
        "--seed", type=not_negative(int, most=2**32 - 1), default=0, metavar="N", help="seed of weights, dropout and data order"
    )
    parser.add_argument("--steps-per-execution", type=positive(int), default=1, metavar="N", help="batches per call of the device")
    parser.add_argument("--mixed-precision", choices=("float16", "bfloat16"), help="compute in this type, keep weights in float32")
    parser.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        help="deterministic operations: a restart repeats every batch bit for bit; slower on GPUs (not measured on a GPU) "
        "(default: on without GPUs, off with GPUs)",
    )
    parser.add_argument(
        "--jit-compile",
        choices=("auto", "on", "off"),
        default="auto",
        help="on: XLA compiles the train step of one replica, or forward and backward on each of several (not measured on a GPU); "
        "auto: one replica as Keras chooses, several not",
    )
    parser.begin_group(f"only {name}")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses and checks the flags.

    Raises:
        InputError: if a flag is wrong, or contradicts another flag or the files in the run's directory.
    """
    args = parser.parse_args(argv)
    if args.checkpoint is None:
        args.checkpoint = os.path.join(_literal(args.workdir), "checkpoints", "model_batch_at_{batch:05d}.weights.h5")
    template = Template(args.checkpoint)
    if not template.counters and args.keep_last == parser.get_default("keep_last"):
        args.keep_last = None  # each save replaces the same file
    args.resume_from = {"auto": True, "never": False}.get(args.resume, args.resume)
    if args.init_from and args.resume not in ("auto", "never"):
        raise InputError(
            "--init-from starts a new run with the weights of another run; --resume PATH resumes that run. Give only one of them."
        )
    if args.resume_from is not True:
        args.resume_from = _checked_resume(template, args.resume_from)
    return args


def checkpoint_callback(args: argparse.Namespace) -> GlobalStepCheckpoint:
    """Returns the checkpoint callback for the flags."""
    return GlobalStepCheckpoint(
        args.checkpoint,
        save_freq=args.save_freq,
        save_secs=args.save_secs,
        keep_last=args.keep_last,
        keep_every=args.keep_every,
        keep_best=args.keep_best,
        resume=args.resume_from,
    )


def positive(kind: Callable[[str], Any], most: float | None = None) -> Callable[[str], Any]:
    """Returns an argparse type: a number above 0, at most `most`; by default at most the largest number in 32 bits."""
    most = _LARGEST[kind] if most is None else most

    def convert(text):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be above 0. Received: {text}")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}. Received: {text}")
        return value

    convert.__name__ = kind.__name__
    return convert


def not_negative(kind: Callable[[str], Any], most: float | None = None) -> Callable[[str], Any]:
    """Returns an argparse type: a number from 0, at most `most`."""

    def convert(text):
        value = kind(text)
        if value < 0:
            raise argparse.ArgumentTypeError(f"must not be below 0. Received: {text}")
        return value if value == 0 else positive(kind, most)(text)

    convert.__name__ = kind.__name__
    return convert


def save_frequency(text):
    """An argparse type: `auto`, `epoch`, or a number of batches."""
    return text if text == "auto" else batches_or_epoch(text)


def batches_or_epoch(text):
    """An argparse type: `epoch`, or a number of batches."""
    return text if text == "epoch" else positive(int)(text)


def number_or_all(text):
    """An argparse type: a number of files, or `all`, which becomes None."""
    return None if text == "all" else positive(int)(text)


def resume(text):
    """An argparse type: `auto`, `never`, or a path."""
    if not text:
        raise argparse.ArgumentTypeError("must be auto, never or the path of a checkpoint. Received: ''")
    return text


def batch_range(text):
    """An argparse type: the first and the last batch of a range, such as `500:510`."""
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"must be FIRST:LAST, such as 500:510. Received: {text}")
    return int(first), int(last)


def _checked_resume(template, resume_from):
    """Returns what to resume from. If the run began with the same `--resume PATH`, this is its own newest checkpoint."""
    if resume_from and os.path.exists(resume_from) and not os.path.isfile(resume_from):  # opening a FIFO would block forever
        raise InputError(f"--resume must be auto, never or the path of a checkpoint. {resume_from} is not a regular file.")
    present = newest_first(template.text)
    if not present:
        return resume_from
    newest, trailer = present[0]
    if resume_from and begins_from(newest) == os.path.abspath(resume_from):
        return True
    if resume_from is False:
        raise InputError(f"--resume never would mix a new run with existing checkpoints, up to {newest}. Use another --workdir.")
    if os.path.exists(resume_from) and os.path.abspath(resume_from) != os.path.abspath(newest):
        raise InputError(
            f"--resume {resume_from} would overwrite later checkpoints, up to {newest} at batch {trailer.batch}. "
            "Use another --workdir."
        )
    return resume_from


def _is_utf8(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _literal(path):
    return path.replace("{", "{{").replace("}", "}}")
