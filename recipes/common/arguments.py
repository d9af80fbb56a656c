"""The flags that every recipe takes."""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from callbacks import GlobalStepCheckpoint, InputError
from callbacks.restoring import newest_first
from callbacks.template import Template
from recipes.common.run_flags import begins_from

MOST_VIRTUAL_DEVICES = 256  # each takes a thread and its own copy of the model
_LARGEST: dict[Callable[[str], Any], float] = {int: 2**31 - 1, float: 3.4e38}


_EXAMPLES = """examples:
  python -m recipes.{name} --workdir runs/longer --epochs 20           a run of its own; started again, it goes on
  python -m recipes.{name} --virtual-devices 2                         two replicas on a machine without GPUs
  python -m recipes.{name} --keep-last 3 --save-secs 600               three checkpoints at most, one every ten minutes
  python -m launch --nproc-per-node 2 -m recipes.{name}                two processes"""


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, except where a flag has none."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises for a wrong flag, as for any other bad input."""

    _group: Any = None  # of argparse

    def begin_group(self, title: str) -> None:
        """Has `--help` show the flags that are added from here on under a title."""
        self._group = self.add_argument_group(title)

    def add_argument(self, *args, **kwargs):
        return self._group.add_argument(*args, **kwargs) if self._group else super().add_argument(*args, **kwargs)

    def error(self, message):
        raise InputError(f"{message} (--help lists the flags)")

    def parse_args(self, args=None, namespace=None):
        parsed = super().parse_args(args, namespace)
        for name, value in vars(parsed).items():
            if isinstance(value, str) and not _is_utf8(value):  # file names of other encodings: HDF5 and TensorFlow take none
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
    """The flags of all recipes, with this recipe's defaults.

    Args:
        name: the recipe's module name, without `recipes.`.
        description: what `--help` says first.
        epochs, global_batch_size, learning_rate, base_batch_size, warmup_epochs, save_freq, keep_last: the defaults.

    Returns:
        A parser, for the recipe to add its own flags to. Read it with `parse`.
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
        help="auto: for one of several ranks horovod where it is installed, else multiworker; mirrored for several GPUs or virtual "
        "devices of one process; else single",
    )
    parser.add_argument(
        "--virtual-devices",
        type=positive(int, most=MOST_VIRTUAL_DEVICES),
        metavar="N",
        help="split the CPU into N devices, to run the distributed path on a machine without GPUs",
    )
    parser.begin_group("training")
    parser.add_argument("--workdir", default=f"runs/{name}", help="the run's directory")
    parser.add_argument("--epochs", type=positive(int), default=epochs, metavar="N", help="the planned end")
    parser.add_argument(
        "--global-batch-size",
        type=positive(int),
        default=global_batch_size,
        metavar="N",
        help="examples of one update over all replicas",
    )
    parser.add_argument("--learning-rate", type=positive(float), default=learning_rate, metavar="X", help="for the global batch")
    parser.add_argument(
        "--base-batch-size",
        type=positive(int),
        default=base_batch_size,
        metavar="N",
        help="the global batch that --learning-rate is for; the rate is scaled linearly to --global-batch-size",
    )
    parser.add_argument(
        "--warmup-epochs",
        type=not_negative(float, most=2**31 - 1),
        default=warmup_epochs,
        metavar="E",
        help="the rate rises over the first E epochs, from the one before scaling, or from 0 without --base-batch-size",
    )
    parser.begin_group("checkpoints and resume")
    parser.add_argument(
        "--save-freq",
        type=save_frequency,
        default=save_freq,
        metavar="N|epoch|auto",
        help="global batches between checkpoints; auto: as often as pays, for at most 1%% of the time",
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
    parser.add_argument("--keep-every", type=positive(int), metavar="N", help="keep one for every N batches")
    parser.add_argument("--keep-best", type=positive(int), metavar="N", help="keep the N with the lowest val_loss")
    parser.add_argument(
        "--resume",
        type=resume,
        default="auto",
        metavar="auto|never|PATH",
        help="auto: go on from the newest checkpoint that verifies; PATH: from that one; an older one with another --workdir",
    )
    parser.add_argument(
        "--init-from",
        metavar="PATH",
        help="begin with the weights of another run: a checkpoint, or the newest of a directory; counters and optimizer begin anew",
    )
    parser.add_argument(
        "--skip-batches",
        type=batch_range,
        metavar="FIRST:LAST",
        help="global batches of the order to leave out, where the loss spikes or becomes NaN; they do not count, and later ones "
        "move up. Stored in checkpoints, so later resumes leave them out too",
    )
    parser.begin_group("watching")
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
        help="what a device reaches at most, for its utilization in TensorBoard; known for NVIDIA's data center GPUs",
    )
    parser.add_argument(
        "--log-secs", type=positive(float), default=10.0, metavar="S", help="seconds between lines, where output is a file"
    )
    parser.begin_group("computation")
    parser.add_argument(
        "--seed", type=not_negative(int, most=2**32 - 1), default=0, metavar="N", help="of weights, dropout and data order"
    )
    parser.add_argument("--steps-per-execution", type=positive(int), default=1, metavar="N", help="batches per call of the device")
    parser.add_argument("--mixed-precision", choices=("float16", "bfloat16"), help="compute in this type, keep weights in float32")
    parser.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        help="deterministic operations: a restart repeats every batch bit for bit; slower on GPUs, not measured how much (default: "
        "on without GPUs, off with GPUs)",
    )
    parser.begin_group(f"{name} alone")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the flags and checks what needs no TensorFlow.

    Raises:
        InputError: if one is wrong, or they contradict each other, or what is on the disk.
    """
    args = parser.parse_args(argv)
    if args.checkpoint is None:
        args.checkpoint = os.path.join(_literal(args.workdir), "checkpoints", "model_batch_at_{batch:05d}.weights.h5")
    template = Template(args.checkpoint)
    if not template.counters and args.keep_last == parser.get_default("keep_last"):
        args.keep_last = None  # one file, which each checkpoint replaces
    args.resume_from = {"auto": True, "never": False}.get(args.resume, args.resume)
    if args.init_from and args.resume not in ("auto", "never"):
        raise InputError(
            "--init-from begins a run with the weights of another, and --resume PATH goes on with all of it. Give one."
        )
    if args.resume_from is not True:
        args.resume_from = _checked_resume(template, args.resume_from)
    return args


def checkpoint_callback(args: argparse.Namespace) -> GlobalStepCheckpoint:
    """The checkpoint callback that the flags describe."""
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
    """An argparse type: a number above 0, and at most `most`; by default what 32 bits hold."""
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
    """An argparse type: a number that is 0 or more, and at most `most`."""

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
    """An argparse type: a number of files, or `all`, which is None."""
    return None if text == "all" else positive(int)(text)


def resume(text):
    """An argparse type: `auto`, `never`, or a path."""
    if not text:
        raise argparse.ArgumentTypeError("must be auto, never or the path of a checkpoint. Received: ''")
    return text


def batch_range(text):
    """An argparse type: the first and the last of some batches, `500:510`."""
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"must be FIRST:LAST, such as 500:510. Received: {text}")
    return int(first), int(last)


def _checked_resume(template, resume_from):
    """Returns what to resume from: with the command that began a run from a checkpoint of another one, the run's own newest."""
    if resume_from and os.path.exists(resume_from) and not os.path.isfile(resume_from):  # to open a FIFO would wait forever
        raise InputError(f"--resume takes auto, never or the path of a checkpoint. {resume_from} is not a regular file.")
    present = newest_first(template.text)
    if not present:
        return resume_from
    newest, trailer = present[0]
    if resume_from and begins_from(newest) == os.path.abspath(resume_from):
        return True
    if resume_from is False:
        raise InputError(
            f"--resume never would mix a new run with the checkpoints that are there, up to {newest}. Use another --workdir."
        )
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
