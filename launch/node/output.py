"""The output of the ranks: unchanged to a log for each rank, and line by line with a prefix to the terminal.

A rank never waits for the terminal: lines that arrive faster than the terminal accepts them are counted, and go only to the logs.
"""

import errno
import os
import select
import stat

BACKLOG = 8 << 20  # bytes that may wait for the terminal before lines are left out
LONGEST_LINE = 1 << 16
TAIL = 1 << 14  # bytes of each rank's output to keep for the report
ATOMIC = select.PIPE_BUF  # bytes that a writable pipe accepts without blocking
LAST_CHANCE = 5.0  # seconds that a terminal may block at the end of a run
COLOURS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)
_LOG_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
CLEAR_LINE = b"\r\x1b[K"


class Log:
    """The log of one rank. Each attempt appends to it. A write error, such as a full disk, does not end the run.

    Args:
        path: the file.
    """

    def __init__(self, path: str):
        self.path = path
        self.lost = 0
        self.error = ""
        try:
            self._file = _open_log(path)
        except OSError as error:
            self._file, self.error = -1, error.strerror or str(error)

    def write(self, data: bytes) -> None:
        """Appends data. Counts in `lost` the bytes that cannot be written."""
        rest = memoryview(data)
        if self._file < 0:
            self.lost += len(rest)
            return
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            self.lost += len(rest)
            self.error = error.strerror or str(error)

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)


def _open_log(path):
    """Opens a regular file. Another user may have put a link or a FIFO there, if the directory is shared.

    Raises:
        OSError: if it cannot be opened, or is not a regular file.
    """
    try:
        descriptor = os.open(path, _LOG_FLAGS, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, "it is a symbolic link") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return descriptor


class Terminal:
    """Standard output, which may be slow, blocked or closed."""

    descriptor = 1

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._left_out = 0
        self._bar = False
        try:
            self.is_tty = os.isatty(self.descriptor)
            mode = os.fstat(self.descriptor).st_mode
            self._blocks = self.is_tty or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
            self.closed = False
        except OSError:
            self.is_tty, self._blocks, self.closed = False, False, True

    def show(self, lines: bytes) -> None:
        """Queues complete lines for the terminal."""
        if len(self._waiting) > BACKLOG:
            self._left_out += lines.count(b"\n")
            return
        if self._left_out:
            self._waiting += b"[launch] %d lines are only in the logs: the terminal was too slow to show them\n" % self._left_out
            self._left_out = 0
        if self._bar:
            self._waiting += CLEAR_LINE
            self._bar = False
        self._waiting += lines

    def redraw(self, line: bytes) -> None:
        """Shows a line that the next line replaces: a progress bar."""
        if len(self._waiting) < ATOMIC:
            self._waiting += CLEAR_LINE + line
            self._bar = True

    @property
    def waiting(self) -> bool:
        return bool(self._waiting) and not self.closed

    def flush(self, seconds: float = 0) -> bool:
        """Writes as much as the terminal accepts within this time. Returns whether it accepted anything."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        took = False
        while self.waiting and (not self._blocks or poll.poll(0 if took else seconds * 1000)):
            size = ATOMIC if self._blocks else len(self._waiting)
            try:
                del self._waiting[: os.write(self.descriptor, self._waiting[:size])]
            except BlockingIOError:
                break
            except OSError:  # the reader is gone; the logs continue
                self.closed = True
            took = True
        return took

    def finish(self) -> None:
        """Writes the rest, as long as the terminal accepts some of it every few seconds."""
        while self.waiting and self.flush(LAST_CHANCE):
            pass
        self.show(b"")  # reports lines that were left out
        self.flush(LAST_CHANCE)
        self._waiting.clear()


class Lines:
    """Splits the output of a rank into lines, adds a prefix, and recognizes lines that are redrawn in place.

    Args:
        prefix: the prefix of each line.
        bars: whether to show lines that are redrawn in place.
    """

    def __init__(self, prefix: bytes, bars: bool):
        self._prefix, self._bars = prefix, bars
        self._partial = b""

    def feed(self, data: bytes) -> bytes:
        """Adds output of the rank. Returns the lines that are now complete."""
        complete, newline, self._partial = (self._partial + data).rpartition(b"\n")
        if b"\r" in self._partial:
            self._partial = b"\r" + _last_drawn(self._partial)
        if len(self._partial) > LONGEST_LINE:
            complete, newline, self._partial = complete + newline + self._partial, b"\n", b""
        return self._with_prefix(complete) if newline else b""

    def bar(self) -> bytes:
        """Returns the line that is being redrawn, if it is shown."""
        return self._prefix + self._partial[1:] if self._bars and self._partial.startswith(b"\r") else b""

    def rest(self) -> bytes:
        """Returns the last line, if it has no newline."""
        rest, self._partial = self._partial, b""
        return self._with_prefix(rest) if rest.strip(b"\r") else b""

    def _with_prefix(self, text):
        if b"\r" in text:
            lines = [line.removesuffix(b"\r") for line in text.split(b"\n")]
            shown = [_last_drawn(line) for line in lines if self._bars or b"\r" not in line]
            if not shown:
                return b""
            text = b"\n".join(shown)
        return self._prefix + text.replace(b"\n", b"\n" + self._prefix) + b"\n"


def _last_drawn(line):
    """Returns what a terminal shows of a line that was redrawn."""
    drawn = [piece.strip(b"\b") for piece in line.split(b"\r")]
    return next((piece for piece in reversed(drawn) if piece), b"")


class Stream:
    """The output of one rank: its pipe, its log, its lines and their tail.

    Args:
        rank: the rank, shown before each line.
        log: the path of the log.
        terminal: shows the lines; None to show nothing.
    """

    def __init__(self, rank: int, log: str, terminal: Terminal | None):
        self.log = Log(log)
        self.tail = b""
        self.bytes = 0
        self._terminal = terminal
        self._lines = Lines(_prefix(rank, terminal), bars=rank == 0)
        self._warned = False
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)

    def read(self) -> int:
        """Reads from the pipe. Returns the number of bytes; 0 at the end, -1 if the pipe is empty."""
        try:
            data = os.read(self.reader, 1 << 18)
        except BlockingIOError:
            return -1
        self.bytes += len(data)
        self.tail = (self.tail + data)[-TAIL:]
        self.log.write(data)
        if self._terminal is not None:
            lines = self._lines.feed(data)
            if lines:
                self._terminal.show(lines)
            elif self._terminal.is_tty and (bar := self._lines.bar()):
                self._terminal.redraw(bar)
        return len(data)

    def drain(self, limit: int = 64) -> None:
        """Reads what is in the pipe now. Stops at a limit, because a grandchild may write forever."""
        while limit and self.read() > 0:
            limit -= 1

    def warning(self) -> str:
        """Returns, once, a warning if the log is incomplete."""
        if self._warned or not self.log.error:
            return ""
        self._warned = True
        return f"{self.log.path} is incomplete: {self.log.error}. The run continues."

    def close(self) -> None:
        """Shows a last line without a newline, and closes pipe and log."""
        if self._terminal is not None and (rest := self._lines.rest()):
            self._terminal.show(rest)
        os.close(self.reader)
        self.log.close()


def _prefix(rank, terminal):
    if terminal is None or not terminal.is_tty or os.environ.get("NO_COLOR"):
        return b"[%d] " % rank
    return b"\x1b[%dm[%d]\x1b[0m " % (COLOURS[rank % len(COLOURS)], rank)
