"""How the endpoint is served."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError
from pydantic.functional_validators import BeforeValidator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from chancellor.context import explain
from chancellor.errors import InvalidInputError

__all__ = ["ServeOptions"]


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Keys = Annotated[tuple[Annotated[SecretStr, Field(min_length=1)], ...], NoDecode, BeforeValidator(_split)]


class ServeOptions(BaseSettings):
    """Options of the endpoint, each from CHANCELLOR_SERVE_* where it is not given.

    Raises:
        InvalidInputError: a value is out of range, or the file with the keys cannot be read.
    """

    model_config = SettingsConfigDict(env_prefix="CHANCELLOR_SERVE_", frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free one."""
    api_keys: Keys = ()
    """Keys that callers may have, comma-separated in the environment. None lets everybody in."""
    api_key_file: Path | None = None
    """A file with further keys, one a line."""
    allowed_hosts: Words = ()
    """Names by which the server may be called, as the Host header has them. None: on a loopback address without keys
    only names of this machine, so that no web page can reach it by a name of its own; else any."""
    preload: Words = ("auto",)
    """Models whose engines start with the server: names, `all`, `none`, or `auto`, the one for a usual question."""
    max_body_mib: Annotated[float, Field(gt=0)] = 4.0
    head_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that a request's head may take to come in, and that a new connection may wait with it."""
    body_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that a body may take to come in."""
    max_requests: Annotated[int, Field(ge=1)] = 1024
    """Most requests under way at once, whether they wait or are answered; more are told to come again (429)."""
    max_connections: Annotated[int, Field(ge=1)] = 4096
    """Most open connections; for one more, the one that has waited longest for a request is closed."""
    default_max_tokens: Annotated[int, Field(ge=1)] = 512
    max_tokens_limit: Annotated[int, Field(ge=1)] = 16_384
    """Most tokens that a request may ask for."""
    max_choices: Annotated[int, Field(ge=1)] = 128
    """Most answers of one request: `n`, times the number of prompts."""
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that a request may take, an engine's start included."""
    drain_delay_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds after SIGTERM in which requests are still taken, while `/ready` tells balancers to send no more."""
    drain_s: Annotated[float, Field(ge=0)] = 60.0
    """Seconds that requests may go on after SIGTERM, and the delay."""
    ping_s: Annotated[float, Field(gt=0)] = 15.0
    """A stream with nothing to say sends a comment this often, so that no proxy closes it."""
    log_prompts: bool = False
    """Log what is asked and answered."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidInputError(
                f"The endpoint cannot be served like this: {explain(error)}.", hint="See `chancellor serve --help`."
            ) from error

    def keys(self) -> tuple[bytes, ...]:
        """Return all keys.

        Raises:
            InvalidInputError: the file cannot be read, or has none.
        """
        keys = [key.get_secret_value() for key in self.api_keys]
        if self.api_key_file is not None:
            try:
                lines = self.api_key_file.expanduser().read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInputError(
                    f"The keys in {self.api_key_file} cannot be read: {error}.", hint="Write one key a line into it."
                ) from error
            found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
            if not found:  # it must not let everybody in
                raise InvalidInputError(f"{self.api_key_file} has no keys.", hint="Write one key a line into it.")
            keys += found
        return tuple(key.encode() for key in keys)
