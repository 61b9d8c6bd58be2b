"""Process-wide settings, from the environment (CHANCELLOR_*). Explicit arguments always win over them."""

from functools import cache
from pathlib import Path

from platformdirs import user_cache_path, user_log_path
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Settings", "settings"]


class Settings(BaseSettings):
    """Where things are kept, and which catalog is read when none is named."""

    model_config = SettingsConfigDict(env_prefix="CHANCELLOR_", frozen=True)

    config: Path | None = None
    """Catalog file. Else `chancellor.toml` in the working folder, else the built-in demo catalog."""
    cache_dir: Path = Field(default_factory=lambda: user_cache_path("chancellor"))
    """Quantised checkpoints are kept in its folder `checkpoints`."""
    log_dir: Path = Field(default_factory=lambda: user_log_path("chancellor"))
    """Engines write their logs here, a file for each process."""
    memory_share: float = Field(default=0.8, gt=0.0, le=1.0)
    """Share of a device's memory that all engines together may take."""
    stall_s: float = Field(default=30.0, gt=0.0)
    """Seconds after which an engine that has requests and does nothing is ended, and started again."""
    switch_interval_ms: float = Field(default=0.5, ge=0.0)
    """Most milliseconds after which Python's threads take turns while engines run; 0 leaves that as it is."""
    gc_threshold: int = Field(default=50_000, ge=0)
    """Objects by which the program has to grow, while engines run, for the next round of Python's garbage collector; 0
    leaves that as it is."""
    sleep_gib: float | None = Field(default=None, ge=0.0)
    """Most GiB of the host's memory for engines that sleep; None has no limit of its own, 0 lets none sleep."""


@cache
def settings() -> Settings:
    """Return the settings of this process, read once."""
    return Settings()
