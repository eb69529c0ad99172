"""Pages of which other sites may send to a source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from blacksmith_dagster.errors import DeclarationError

_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class CORS:
    """The sites whose pages a browser lets send to a source (Cross-Origin Resource Sharing).

    - `origins`: as browsers send them, scheme, host and port: `https://shop.example`; `'*'` for all.
    - `max_age`: for how many seconds a browser may remember the response (600).

    Cookies are never asked for. Any header may be sent. It keeps nobody out who is no browser: that is
    what `auth` is for.

    >>> CORS(origins=["https://shop.example"]).max_age
    600

    Raises `DeclarationError`.
    """

    origins: Sequence[str]
    max_age: int = 600

    def __post_init__(self) -> None:
        origins = self.origins
        if isinstance(origins, str) or not isinstance(origins, Sequence) or not origins:
            raise DeclarationError(
                f"CORS(origins={origins!r}): write a list, as in origins=['https://shop.example']"
            )
        for origin in origins:
            if origin != "*" and not (isinstance(origin, str) and _ORIGIN.fullmatch(origin)):
                raise DeclarationError(
                    f"CORS(origins=...): {origin!r} is no origin as browsers send it; write scheme, "
                    "host in lower case, and port if it is another than the scheme's, without a "
                    "slash at the end: 'https://shop.example'; or '*' for all"
                )
        if not (isinstance(self.max_age, int) and self.max_age >= 0):
            raise DeclarationError(f"CORS(max_age={self.max_age!r}): a whole number of seconds")
