"""The errors a user can cause, by who has to act. Everything else is a bug and keeps its traceback."""


class MiniGPTv2Error(Exception):
    """Base of all errors that `minigptv2` prints as one message and a non-zero exit code."""

    exit_code = 1


class ConfigError(MiniGPTv2Error):
    """The operator asked for something impossible: a key, a value, a combination."""

    exit_code = 2


class DataError(MiniGPTv2Error):
    """A shard, a record or an image is not what it should be. The message says where it lies."""

    exit_code = 3


class MissingFilesError(DataError):
    """Original files of a corpus are not where they are looked for. Says where that is and where to get them."""


class StorageError(MiniGPTv2Error):
    """A store of shards did not answer for so long that the run stops; nothing is wrong with the data."""

    exit_code = 10


class CheckpointError(MiniGPTv2Error):
    """A checkpoint or export is damaged, missing, or does not fit this run."""

    exit_code = 4


class RequeueExit(MiniGPTv2Error):
    """Not a failure: the run was asked to stop, has saved, and the same command goes on. Schedulers requeue on it."""

    exit_code = 85


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, or an empty string if none is close."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
