"""What the demo reads is pinned by checksum, fetched once, and missed with one clear message."""

import hashlib
from pathlib import Path

import pytest

from peft_compiler.demo import archives
from peft_compiler.demo.archives import Archive, DemoError, cache_folder, fetch

CONTENT = b"what pip downloads"
ARCHIVE = Archive(
    "some-package==1.0", "some-package-1.0.zip", hashlib.sha256(CONTENT).hexdigest(), source=True
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_folder()


def test_what_was_downloaded_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Archive] = []

    def download(archive: Archive, folder: Path) -> None:
        calls.append(archive)
        (folder / archive.file).write_bytes(CONTENT)

    monkeypatch.setattr(archives, "download", download)
    assert fetch(ARCHIVE) == fetch(ARCHIVE) == cache / ARCHIVE.file
    assert calls == [ARCHIVE]
    assert list(cache.iterdir()) == [cache / ARCHIVE.file]


def test_another_content_is_refused(cache: Path) -> None:
    cache.mkdir()
    (cache / ARCHIVE.file).write_bytes(b"something else")
    with pytest.raises(DemoError) as error:
        fetch(ARCHIVE)
    assert str(error.value) == (
        f"'{cache / ARCHIVE.file}' is not the some-package==1.0 that the demo was written for\n"
        f"  its SHA-256 is {hashlib.sha256(b'something else').hexdigest()}, expected {ARCHIVE.sha256}\n"
        "  remove it to have it fetched again"
    )


def test_what_pip_cannot_find_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DemoError) as error:
        fetch(ARCHIVE)
    assert str(error.value).startswith(
        "the first run of the demo needs some-package==1.0, which cannot be downloaded\n  "
    )
    assert list(cache.iterdir()) == []
