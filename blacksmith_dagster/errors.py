"""Every error that the package raises, as one tree.

    BlacksmithError
    ├── DeclarationError          a pipeline is declared wrongly (raised at import)
    ├── SettingsError             an environment variable or an option is missing or wrong
    │   └── MissingSecret
    ├── UsageError                an object is used in a way it does not allow
    ├── RequestError              a request is rejected; nothing was stored
    │   ├── Reject                an extract function rejects it (422)
    │   │   └── ValidationError   the data does not fit the event's model (422)
    │   ├── BadRequest            400
    │   ├── Unauthorized          401: the sender's token or signature is missing or wrong
    │   ├── Forbidden             403: the sender's address is not allowed
    │   ├── RequestTimeout        408
    │   ├── TooLarge              413
    │   ├── UnsupportedMedia      415
    │   ├── Unprocessable         422
    │   │   └── KeyReused         the same idempotency key with another body
    │   └── TooManyRequests       429: the queue is full
    ├── Unavailable               the store, the supervisor, a broker or a destination does not respond
    │   └── OutcomeUnknown        the connection broke during a commit
    ├── ChangesLost               a database dropped changes before they were read
    ├── Timeout                   a load did not return in time
    ├── MigrationError            a migration's file, or a plan, breaks a rule; nothing was run
    │   └── MigrationLocked       another run is migrating this target
    ├── MigrationPending          a destination waits for a migration, or is being migrated
    ├── CodeOutdated              a destination's schema is newer than this code
    ├── StoreError
    │   ├── SchemaOutdated        run `blacksmith store upgrade`
    │   ├── SequenceWentBack      the store was restored or promoted
    │   ├── NotFound              nothing of this name or id
    │   │   └── Gone              it was past its retention and has been purged
    │   └── CursorMoved           another process has moved this cursor
    └── FencedOut                 another process has taken over; stop

Each message says what to do next.
"""

from __future__ import annotations


class BlacksmithError(Exception):
    """The base class of every error that this package raises on purpose."""


class DeclarationError(BlacksmithError):
    """A source, a destination, a flow or the application is declared wrongly.

    The message states the rule and how to fix the declaration.
    """


class SettingsError(BlacksmithError):
    """A setting is missing or has a value that cannot be used."""


class MissingSecret(SettingsError):
    """The environment variable that a `Secret` names is not set."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the environment variable {name} is not set; set it to the secret's value"
        )
        self.name = name


class UsageError(BlacksmithError):
    """A call that the object does not allow in its present state."""


class RequestError(BlacksmithError):
    """A request is rejected: no part of it was stored.

    `status` is the HTTP status of the response. `title` is a short name of the problem, the same for
    every error of this class (RFC 9457, section 3.1.3).
    """

    status = 400
    title = "Bad request"


class BadRequest(RequestError):
    """The request cannot be read (not JSON, not UTF-8, a wrong header)."""


class Unauthorized(RequestError):
    """A token or a signature is missing, wrong or too old.

    `challenge` is the value of WWW-Authenticate: how to authenticate (RFC 9110, section 11.6.1).
    """

    status = 401
    title = "Unauthorized"

    def __init__(self, message: str, challenge: str = "Bearer") -> None:
        super().__init__(message)
        self.challenge = challenge


class Forbidden(RequestError):
    """The sender's address is not in an allowed network."""

    status = 403
    title = "Forbidden"


class RequestTimeout(RequestError):
    """The body did not arrive in time."""

    status = 408
    title = "Request timeout"


class TooLarge(RequestError):
    """The body, or one of its events, is larger than its limit."""

    status = 413
    title = "Too large"


class UnsupportedMedia(RequestError):
    """The Content-Type or Content-Encoding is not supported."""

    status = 415
    title = "Unsupported media type"


class Unprocessable(RequestError):
    """The request is well-formed, but its content is rejected."""

    status = 422
    title = "Unprocessable content"


class Reject(Unprocessable):
    """Raised by an extract function to reject a request with 422 and its reason."""

    title = "Rejected by the source"


class ValidationError(Reject):
    """The data does not fit the model of its event; the message says where."""

    title = "Does not fit the model"


class KeyReused(Unprocessable):
    """An idempotency key was used again with another body."""

    title = "Idempotency key reused"


class TooManyRequests(RequestError):
    """Too many events are waiting to be stored. Try again after `retry_after` seconds."""

    status = 429
    title = "Too many requests"
    retry_after = 1


class Unavailable(BlacksmithError):
    """A required service does not respond. The call that raised this changed nothing."""


class OutcomeUnknown(Unavailable):
    """The connection to the database broke during a commit, which may have succeeded or failed.

    Send the same request again with the same `Idempotency-Key`: it creates one event at most.
    """


class ChangesLost(BlacksmithError):
    """Changes of a database can no longer be read, and not all of them were stored.

    The message says where the gap starts. Nothing more is read until you choose how to continue: a
    gap is never skipped silently.
    """


class Timeout(BlacksmithError):
    """The destination event's function did not return before the load's time-out.

    The load is recorded as unknown, and its jobs are due again. End this process: Python cannot stop
    the function's thread.
    """


class MigrationError(BlacksmithError):
    """Migrations cannot be run. The message names them or the file, and how to fix it.

    The call that raised this ran nothing.
    """


class MigrationLocked(MigrationError):
    """Another run is migrating the same source or destination."""


class MigrationPending(BlacksmithError):
    """A destination's jobs wait: it is being migrated, or one of its migrations has not run."""


class CodeOutdated(BlacksmithError):
    """A destination has been migrated further than this code declares.

    This code loads nothing more: replace it with the newer code.
    """


class StoreError(BlacksmithError):
    """The store cannot do what was requested."""


class SchemaOutdated(StoreError):
    """The store's tables have another version than this package needs."""


class SequenceWentBack(StoreError):
    """The sequence that orders events is behind an event, a load or a log start.

    New events would get numbers that loads have already passed, and would be lost silently.
    """


class NotFound(StoreError):
    """There is nothing of this name or id in this store."""


class Gone(NotFound):
    """The event, job or load was past its retention and has been purged.

    The message says which events are still stored.
    """


class CursorMoved(StoreError):
    """A reader's cursor has changed since the caller read it: another process has moved it."""


class FencedOut(BlacksmithError):
    """Another process has taken over this lane. Stop: the results of this one no longer count."""
