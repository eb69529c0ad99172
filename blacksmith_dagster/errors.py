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
    │   ├── Unauthorized          401: the sender has not proved who they are
    │   ├── Forbidden             403: not from this network
    │   ├── RequestTimeout        408
    │   ├── TooLarge              413
    │   ├── UnsupportedMedia      415
    │   ├── Unprocessable         422
    │   │   └── KeyReused         the same idempotency key with another body
    │   └── TooManyRequests       429: the queue is full
    ├── Unavailable               the store, the supervisor, a broker or a destination does not respond
    │   └── OutcomeUnknown        the connection broke during a commit
    ├── ChangesLost               a database's changes are gone before they were read
    ├── Timeout                   a load has not returned in time
    ├── MigrationError            a migration's file, or a plan, breaks a rule; nothing was run
    │   └── MigrationLocked       another run is migrating this target
    ├── MigrationPending          a destination waits for a migration, or is being migrated
    ├── CodeOutdated              a destination is of a newer version than this code
    ├── StoreError
    │   ├── SchemaOutdated        run `blacksmith store upgrade`
    │   ├── SequenceWentBack      the store was restored or promoted
    │   ├── NotFound              no such event, job or load
    │   │   └── Gone              there was, but it was older than it is kept
    │   └── CursorMoved           another process has read on from this cursor
    └── FencedOut                 another process has taken over; stop

Each message says what to do next.
"""

from __future__ import annotations


class BlacksmithError(Exception):
    """The root of the tree: catch it to catch whatever this package raises on purpose."""


class DeclarationError(BlacksmithError):
    """A source, a destination, a flow or the application breaks a rule of declaring.

    The message holds the rule and the fix.
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
    """A request is rejected: nothing of it was stored.

    `status` is the HTTP status of the response, `title` a short name of the problem
    that stays the same from occurrence to occurrence (RFC 9457, section 3.1.3).
    """

    status = 400
    title = "Bad request"


class BadRequest(RequestError):
    """The request cannot be read (not JSON, not UTF-8, a wrong header)."""


class Unauthorized(RequestError):
    """The sender has not proved who they are: a token or a signature is missing, wrong or old.

    `challenge` says how they can, as WWW-Authenticate does (RFC 9110, section 11.6.1).
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
    """The body has not come in time."""

    status = 408
    title = "Request timeout"


class TooLarge(RequestError):
    """The body, or one of its events, is over its limit."""

    status = 413
    title = "Too large"


class UnsupportedMedia(RequestError):
    """The Content-Type or Content-Encoding is not supported."""

    status = 415
    title = "Unsupported media type"


class Unprocessable(RequestError):
    """The request can be read, and its content is rejected."""

    status = 422
    title = "Unprocessable content"


class Reject(Unprocessable):
    """Raised by an extract function to reject a request with 422 and the reason given."""

    title = "Rejected by the source"


class ValidationError(Reject):
    """The data can be read, and does not fit the model of its event: the message says where."""

    title = "Does not fit the model"


class KeyReused(Unprocessable):
    """An idempotency key came again with another body."""

    title = "Idempotency key reused"


class TooManyRequests(RequestError):
    """Too many events wait to be stored. Try again after `retry_after` seconds."""

    status = 429
    title = "Too many requests"
    retry_after = 1


class Unavailable(BlacksmithError):
    """A service that is needed does not respond. Nothing was changed by the call that raised this."""


class OutcomeUnknown(Unavailable):
    """The connection to the database broke while a commit was under way: it may have happened or not.

    Send the same request again with the same `Idempotency-Key`: it makes one event at most.
    """


class ChangesLost(BlacksmithError):
    """Changes of a database can't be read any more, though not all were kept.

    The message says from where on they are missing. Nothing more is read until it is said how to
    begin anew: a gap is never passed over in silence.
    """


class Timeout(BlacksmithError):
    """A load ran past its time-out, and the destination event's function has not returned.

    The load is recorded as unknown, its jobs are due again. End this process: Python cannot stop
    the function's thread.
    """


class MigrationError(BlacksmithError):
    """Migrations cannot be run as asked: the message names them, or the file, and the fix.

    Nothing was run by the call that raised this.
    """


class MigrationLocked(MigrationError):
    """Another run is migrating the same source or destination."""


class MigrationPending(BlacksmithError):
    """A destination is being migrated, or a migration of it has not run: its jobs wait."""


class CodeOutdated(BlacksmithError):
    """A destination has been migrated beyond what this code declares.

    Nothing more is loaded by it: start the newer code in its place.
    """


class StoreError(BlacksmithError):
    """The store cannot do what it is asked to."""


class SchemaOutdated(StoreError):
    """The store's tables are of another version than this package's."""


class SequenceWentBack(StoreError):
    """The sequence that orders events is behind an event, a load or a log start that it made.

    Events written now would get numbers that loads have passed already, and be lost in silence.
    """


class NotFound(StoreError):
    """There is no such event, job or load in this store."""


class Gone(NotFound):
    """What is asked for was older than it is kept, and has been purged.

    The message says from when on events are kept.
    """


class CursorMoved(StoreError):
    """A reader's cursor is not where the caller read it: another process has read on from there."""


class FencedOut(BlacksmithError):
    """Another process has taken over this lane. Whatever is under way here no longer counts: stop."""
