"""What is installed, as the metadata of the packages says: nothing is imported."""

import importlib.metadata
from collections.abc import Iterable

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

__all__ = ["extras", "fits", "missing", "requirements", "too_old", "version"]


def version(name: str) -> Version | None:
    """Return the installed version of a package, or None if it is not installed or has no version that can be read."""
    try:
        return Version(importlib.metadata.version(name))
    except (importlib.metadata.PackageNotFoundError, InvalidVersion, TypeError):  # a broken install has version None
        return None


def requirements(name: str, extra: str = "") -> list[Requirement]:
    """Return what a package asks for on this machine: without an extra, or only because of this one."""
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        wanted = not always and requirement.marker is not None and requirement.marker.evaluate({"extra": extra})
        if wanted if extra else always:
            found.append(requirement)
    return found


def extras(name: str) -> list[str]:
    """Return the extras of a package."""
    try:
        return importlib.metadata.metadata(name).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def fits(requirement: Requirement, found: Version) -> bool:
    """Return whether a version is within the range. Pre-releases count: nightly builds are what people test with."""
    return requirement.specifier.contains(found, prereleases=True)


def too_old(requirement: Requirement, found: Version) -> bool:
    """Return whether a version lies below the range, and not above it."""
    floors = [Version(one.version) for one in requirement.specifier if one.operator in (">=", "~=", "==", ">")]
    return bool(floors) and found < max(floors)


def missing(wanted: Iterable[Requirement]) -> list[str]:
    """Return the names of the packages that are not installed, those of their extras included."""
    names = []
    for requirement in wanted:
        if version(requirement.name) is None:
            names.append(requirement.name)
        for extra in sorted(requirement.extras):
            names += [one.name for one in requirements(requirement.name, extra) if version(one.name) is None]
    return list(dict.fromkeys(names))
