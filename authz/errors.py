"""The errors a user sees, by the exit code they end a command with."""


class AuthzError(Exception):
    """Something a user can mend; the text names it and the mend. Shown without a traceback."""

    exit_code = 3  # could not tell: a server is down, a key is missing


class UsageError(AuthzError):
    """A wrong option, configuration, policy or data directory."""

    exit_code = 2


class UnavailableError(AuthzError):
    """A part that is needed does not answer or refuses."""

    exit_code = 3
