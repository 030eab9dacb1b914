"""The `bnfold` command: how it ends.

Whatever goes wrong leaves as one line on stderr and an exit code: 0 done, 1 not equivalent, 2 bad
input, usage or I/O, 3 can't tell, 130 interrupted.  What arguments mean is in `app`, what a verb does in the
module of its name, how results look in `render`.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from typing import NoReturn

from bnfold.errors import BnfoldError

FAILED, INTERRUPTED = 2, 130

# Taken from anywhere in the arguments: an error message asks people to add it to what they typed.
TRACEBACK = "--traceback"


def main() -> NoReturn:
    """Run the command with the arguments of the process, and exit."""
    arguments = sys.argv[1:]
    gc.disable()  # a process of a second: looking for garbage took a tenth of it, and there are no cycles to find
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill cleans up as Ctrl-C does
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a terminal or a pipe may not know all of γ, × and ’
        code = _run([argument for argument in arguments if argument != TRACEBACK])
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk can still be reported
    except SystemExit:
        raise
    except BaseException as error:
        if TRACEBACK in arguments:
            import traceback

            traceback.print_exc()
        code = _end(error)
    gc.freeze()  # the interpreter's own search at exit took another tenth
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    # Arguments are parsed by typer; the verb itself runs out here, since what typer makes of Ctrl-C and
    # of closed pipes differs from version to version.
    from .app import app

    job = app(arguments or ["--help"], prog_name="bnfold", standalone_mode=False)
    if callable(job):
        return job() or 0
    return int(job or 0)


def _end(error: BaseException) -> int:
    """Say what went wrong, if there is anything to say; returns the exit code."""
    if isinstance(error, OSError) and sys.stdout is not None:  # the interpreter's own flush at exit must not fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # whoever reads the result has seen enough of it
        return 0
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        _say("interrupted")
        return INTERRUPTED
    if isinstance(error, BnfoldError):
        _say(str(error))
        return error.exit_code
    if isinstance(error, MemoryError):
        _say("there is not enough memory for this model; nothing was written")
    elif isinstance(error, OSError):
        _say(f"{error.strerror or error}{': ' + str(error.filename) if error.filename else ''}")
    elif (message := getattr(error, "format_message", None)) is not None:  # of the arguments' parser
        verb = " ".join(argument for argument in sys.argv[1:2] if argument.isalpha())  # where the parser forgets it
        command = getattr(getattr(error, "ctx", None), "command_path", f"bnfold {verb}".strip())
        _say(f"{message().rstrip('.')}; see `{command} --help`")
    else:
        what = f"{type(error).__name__}: {error}"
        _say(f"internal error: {what}; please report it, with the output of the same command with {TRACEBACK}")
    return FAILED


def _say(line: str) -> None:
    from bnfold.errors import clean

    if sys.stderr is not None:
        print(f"bnfold: {clean(line)}", file=sys.stderr)
