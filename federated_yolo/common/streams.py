"""Makes the standard streams of a command last: closed, cut off or of few letters, it goes on."""

import io
import os
import sys


class _Output(io.FileIO):
    """An output that is dropped once nobody reads it any more, as after `| head -1`."""

    def write(self, data: bytes, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write bytes, from the first closed pipe on to nowhere."""
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def make_streams_last() -> None:
    """Replace the standard streams where a command could fail only for its output.

    A stream that was closed (`>&-`) leads to nowhere. Output to a pipe whose reader has ended is
    dropped. Letters that the encoding of stdout does not have are written as `?`.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # the lowest free number, so no file of a run becomes the output
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115
            os.set_inheritable(stream.fileno(), True)
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            if name == "stdout":  # Python's stderr escapes letters in any case
                stream.reconfigure(errors="replace")
            stream = _lasting(stream)
        setattr(sys, name, stream)


def _lasting(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """Return a stream to the same file, with the same settings, that outlives its reader."""
    is_buffered = isinstance(stream.buffer, io.BufferedWriter)
    if type(stream.buffer.raw if is_buffered else stream.buffer) is not io.FileIO:  # pyright: ignore
        return stream  # a Windows console, which is no pipe
    stream.flush()
    raw = _Output(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if is_buffered else raw,  # pyright: ignore[reportArgumentType]
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def flush_problem() -> str | None:
    """Write out what was printed; return a line if it cannot be written, as on a full disk."""
    problem = None
    for name in ("stderr", "stdout"):
        try:
            getattr(sys, name).flush()
        except OSError as error:
            problem = f"{name}: {error.strerror or error}; the rest of the output is lost"
    return problem
