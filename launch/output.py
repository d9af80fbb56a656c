"""The ranks' output: all of it, as it came, to a log for each rank; whole lines with the rank in front to the terminal.

A rank never waits for the terminal: lines that come faster than it takes them are counted, and left to the logs.
"""

import os
import select
import stat

BACKLOG = 8 << 20  # bytes that wait for the terminal before lines are left out
LONGEST_LINE = 1 << 16
TAIL = 1 << 14  # bytes of each rank's output that are kept for the report
ATOMIC = select.PIPE_BUF  # a writable pipe takes as much at once without blocking
LAST_CHANCE = 5.0  # seconds that a terminal may stand still at the end of a run
COLOURS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)
_LOG_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO that nobody reads must not stop it
CLEAR_LINE = b"\r\x1b[K"


class Log:
    """The log of one rank, to which each attempt is appended.

    Args:
        path: the file; a disk that is full, or another error, costs the log and not the run.
    """

    def __init__(self, path: str):
        self.path = path
        self.lost = 0
        self.error = ""
        try:
            self._file = os.open(path, _LOG_FLAGS, 0o666)
        except OSError as error:
            self._file, self.error = -1, str(error)

    def write(self, data: bytes) -> None:
        """Appends; what cannot be written is counted in `lost`."""
        rest = memoryview(data)
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


class Terminal:
    """Standard output, which may be slow, stand still or go away.

    Args:
        descriptor: where to write.
    """

    def __init__(self, descriptor: int = 1):
        self.descriptor = descriptor
        self._waiting = bytearray()
        self._left_out = 0
        self._bar = False
        try:
            self.is_tty = os.isatty(descriptor)
            mode = os.fstat(descriptor).st_mode
            self._blocks = self.is_tty or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
            self.closed = False
        except OSError:
            self.is_tty, self._blocks, self.closed = False, False, True

    def show(self, lines: bytes) -> None:
        """Shows whole lines, as soon as the terminal takes them."""
        if len(self._waiting) > BACKLOG:
            self._left_out += lines.count(b"\n")
            return
        if self._left_out:
            self._waiting += b"[launch] %d lines are in the logs only: they came faster than they could be shown\n" % self._left_out
            self._left_out = 0
        if self._bar:
            self._waiting += CLEAR_LINE
            self._bar = False
        self._waiting += lines

    def redraw(self, line: bytes) -> None:
        """Shows a line that the next one replaces: a progress bar."""
        if len(self._waiting) < ATOMIC:
            self._waiting += CLEAR_LINE + line
            self._bar = True

    @property
    def waiting(self) -> bool:
        return bool(self._waiting) and not self.closed

    def flush(self, seconds: float = 0) -> bool:
        """Writes what the terminal takes within this time. Returns whether it took anything."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        took = False
        while self.waiting and (not self._blocks or poll.poll(0 if took else seconds * 1000)):
            size = ATOMIC if self._blocks else len(self._waiting)
            try:
                del self._waiting[: os.write(self.descriptor, self._waiting[:size])]
            except BlockingIOError:
                break
            except OSError:  # nobody reads any more: the logs go on
                self.closed = True
            took = True
        return took

    def finish(self) -> None:
        """Writes what is left, for as long as the terminal takes some of it every few seconds."""
        while self.waiting and self.flush(LAST_CHANCE):
            pass
        self.show(b"")  # what remains to be said: lines that were left out
        self.flush(LAST_CHANCE)
        self._waiting.clear()


class Lines:
    """Puts one rank's name in front of its lines, and tells lines that are redrawn in place from others.

    Args:
        prefix: what stands before each line.
        bars: show lines that were redrawn in place; else they are in the log only.
    """

    def __init__(self, prefix: bytes, bars: bool):
        self._prefix, self._bars = prefix, bars
        self._partial = b""

    def feed(self, data: bytes) -> bytes:
        """Takes what the rank wrote. Returns the lines that are complete now."""
        complete, newline, self._partial = (self._partial + data).rpartition(b"\n")
        if b"\r" in self._partial:
            self._partial = b"\r" + _last_drawn(self._partial)
        if len(self._partial) > LONGEST_LINE:
            complete, newline, self._partial = complete + newline + self._partial, b"\n", b""
        return self._with_prefix(complete) if newline else b""

    def bar(self) -> bytes:
        """The line that is being redrawn, if it is one that is shown."""
        return self._prefix + self._partial[1:] if self._bars and self._partial.startswith(b"\r") else b""

    def rest(self) -> bytes:
        """The last line, if it has no end."""
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
    """What remains of a line that was written over itself."""
    drawn = [piece.strip(b"\b") for piece in line.split(b"\r")]
    return next((piece for piece in reversed(drawn) if piece), b"")


class Stream:
    """One rank's output: its pipe, its log, its lines and the end of what it said.

    Args:
        rank: the number in front of its lines.
        log: path of its log.
        terminal: where its lines are shown, or None.
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
        """Takes what is in the pipe. Returns how much that was; 0 at its end, -1 if there is nothing now."""
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
        """Takes what is in the pipe now; no more, since a grandchild may write for ever."""
        while limit and self.read() > 0:
            limit -= 1

    def warning(self) -> str:
        """Says once that the log is not complete."""
        if self._warned or not self.log.error:
            return ""
        self._warned = True
        return f"{self.log.path} is not complete: {self.log.error}. The run goes on."

    def close(self) -> None:
        """Shows a last line without an end, and closes everything."""
        if self._terminal is not None and (rest := self._lines.rest()):
            self._terminal.show(rest)
        os.close(self.reader)
        self.log.close()


def _prefix(rank, terminal):
    if terminal is None or not terminal.is_tty or os.environ.get("NO_COLOR"):
        return b"[%d] " % rank
    return b"\x1b[%dm[%d]\x1b[0m " % (COLOURS[rank % len(COLOURS)], rank)
