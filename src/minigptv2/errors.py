"""Defines every error that a user can cause, with its exit code. Other exceptions are bugs and keep their traceback."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit code of a process that a `MiniGPTv2Error` ended. docs/reliability.md describes each code."""

    CONFIG = 2
    DATA = 3
    CHECKPOINT = 4
    STEP = 5
    RANK_LOST = 6
    HANG = 7
    CRASH_LOOP = 8
    NODES = 9
    STORAGE = 10
    REQUEUE = 85

    @property
    def final(self) -> bool:
        """Whether a restart would only repeat the error."""
        return self in (ExitCode.CONFIG, ExitCode.DATA, ExitCode.CHECKPOINT, ExitCode.STEP, ExitCode.CRASH_LOOP)


OTHER_ERROR = 1
"""Exit code of any other exception."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class MiniGPTv2Error(Exception):
    """Base of all errors that `minigptv2` prints as one message. The process ends with `exit_code`."""

    exit_code: int = OTHER_ERROR


class ConfigError(MiniGPTv2Error):
    """The user asked for something impossible: an unknown key, an invalid value, a combination that cannot work."""

    exit_code = ExitCode.CONFIG


class DataError(MiniGPTv2Error):
    """A shard, a record or an image is invalid. The message names the file."""

    exit_code = ExitCode.DATA


class TooLongError(DataError):
    """A conversation and its answer do not fit into the context of the model."""


class MissingFilesError(DataError):
    """Source files of a corpus were not found. The message names the folder and where to download them."""


class CheckpointError(MiniGPTv2Error):
    """A checkpoint or export is damaged, missing, not writable or incompatible with this run."""

    exit_code = ExitCode.CHECKPOINT


class StepError(MiniGPTv2Error):
    """Too many skipped steps in a row, a trainable weight that does not change, or a frozen one that does."""

    exit_code = ExitCode.STEP


class RankError(MiniGPTv2Error):
    """A rank stopped sending heartbeats: it was killed or stopped, or its node or network was lost."""

    exit_code = ExitCode.RANK_LOST


class HangError(MiniGPTv2Error):
    """Training made no progress within its time limit."""

    exit_code = ExitCode.HANG


class CrashLoopError(MiniGPTv2Error):
    """The latest starts in a row all ended without a newer checkpoint, so this start is refused."""

    exit_code = ExitCode.CRASH_LOOP


class NodesError(MiniGPTv2Error):
    """The nodes of a job cannot train together."""

    exit_code = ExitCode.NODES


class StorageError(MiniGPTv2Error):
    """A remote store of shards is unreachable for too long. The data itself is not damaged."""

    exit_code = ExitCode.STORAGE


class RequeueExit(MiniGPTv2Error):
    """The run was asked to stop and has saved. The same command resumes it, and schedulers requeue on its exit code."""

    exit_code = ExitCode.REQUEUE


class LeakError(MiniGPTv2Error):
    """Attention over packs leaks between samples on this machine."""


def exit_code_of(error: BaseException) -> int:
    """Exit code of a process that ends with `error`."""
    if isinstance(error, MiniGPTv2Error):
        return int(error.exit_code)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else OTHER_ERROR


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, or an empty string if none is close."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def counted(number: int, unit: str) -> str:
    """The number with its unit, which is given in the plural and written in the singular for one."""
    singular = f"{unit[:-3]}y" if unit.endswith("ies") else unit.removesuffix("s")
    return f"{number:,} {singular if number == 1 else unit}"
