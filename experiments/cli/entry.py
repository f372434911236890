"""The way in: runs a command, and makes one line of what goes wrong."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import signal
import sys
from typing import TextIO

import typer
from servetwin.core import ServeTwinError
from servetwin.core.errors import PolicyFault, Stopped
from servetwin.core.files import remove_empty
from servetwin.core.invariants import watchdog
from typer.main import get_command_name

from .app import app

#: What a machine may refuse while files are being written, without a fault of anybody's code.
OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EMFILE),
}
#: The exit code where what reads the output stopped reading, as of a program that SIGPIPE ends: 128 and its number.
UNREAD = 141


def main() -> None:
    """Run the command line. Errors are one line on standard error; 2 is the exit code of wrong input.

    SIGTERM (of a batch system, or of a container's end) ends a run as Ctrl-C does, with exit code 143.
    """
    signal.signal(signal.SIGTERM, _terminate)
    watchdog.give_up = _give_up
    code = _flushed(_run())
    if code:
        remove_empty()
    sys.exit(code)


def _flushed(code: int) -> int:
    """*code*, unless what is left of the output does not reach its reader, which Python would tell in lines of its
    own when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = code or UNREAD
            _drop(stream)
        except OSError as error:  # a full disk
            if stream is sys.stdout and code == 0:
                code = _fail(f"the output: {error.strerror}; it is not whole", 1)
            _drop(stream)
        except ValueError:  # it was closed
            pass
    return code


def _drop(stream: TextIO) -> None:
    """Let what *stream* holds go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _give_up(told: str) -> None:
    """A policy that never returns catches what is to end it, so that nothing but the process is left to be ended."""
    _fail(told, PolicyFault.exit_code)
    os._exit(PolicyFault.exit_code)


def _terminate(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: what was recorded is being written
    raise Stopped("terminated", 128 + number)


def _run() -> int:
    try:
        arguments = sys.argv[1:] or ["--help"]
        code = _with_one(arguments[0])(arguments, prog_name="servetwin", standalone_mode=False)
    except ServeTwinError as error:
        return _fail(str(error), error.exit_code)
    except Stopped as stop:
        return _fail(str(stop), stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        return UNREAD
    except SystemExit as end:  # typer ends the process itself where nobody reads what it prints
        if isinstance(end.__context__, BrokenPipeError):
            return UNREAD
        raise
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        return _fail(f"{error.filename or 'the output'}: {error.strerror}; what was being written is not whole", 1)
    except Exception as error:
        # Wrong usage. Its class is click's, which typer brings along in some versions and imports in others.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "servetwin"
        return _fail(f"{error.format_message().rstrip('.')} (see {command} --help)", getattr(error, "exit_code", 2))
    if code == 130:
        return _fail("interrupted", code)
    return code if isinstance(code, int) else 0


def _with_one(command: str) -> typer.Typer:
    """The command line with no more than *command*, if there is one of that name: to make all of them takes longer
    than a short run."""
    own = [
        c
        for c in app.registered_commands
        if c.callback and (c.name or get_command_name(c.callback.__name__)) == command
    ]
    if not own:
        return app
    alone = copy.copy(app)
    alone.registered_commands = own
    return alone


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        typer.echo(f"servetwin: {' '.join(message.split())}", err=True)
    return code
