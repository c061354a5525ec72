"""What goes onto a CD or floppy: the files, globs, directories and contents a template names -> path on it."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from imagebuilder.errors import Problem, TemplateError

Files = dict[str, bytes | Path]
"""Path on the medium -> content, or the file that has it; a path that ends in '/' is an empty directory."""


def cd_files(patterns: Sequence[str], content: Mapping[str, str]) -> Files:
    """`cd_files`, `cd_content`: directories with all that is in them; 'a' stays a directory, 'a/' is its contents."""
    return _collected({"cd_files": _gather(patterns, recursive=True)}, content, "cd_content")


def floppy_files(patterns: Sequence[str], directories: Sequence[str], content: Mapping[str, str]) -> Files:
    """`floppy_files` (flat, of directories only the files in them), `floppy_dirs` (whole), `floppy_content`."""
    gathered = {
        "floppy_files": _gather(patterns, recursive=False),
        "floppy_dirs": _gather(directories, recursive=True),
    }
    return _collected(gathered, content, "floppy_content")


def _collected(
    gathered: Mapping[str, Sequence[tuple[str, Path] | str]], content: Mapping[str, str], content_key: str
) -> Files:
    """One tree of everything; TemplateError with everything that is wrong with it. Content wins over a file."""
    files: Files = {}
    problems: list[Problem] = []
    for key, found in gathered.items():
        for item in found:
            if isinstance(item, str):
                problems.append(Problem(f"{key}: {item}"))
            elif item[0].endswith("/"):
                files[item[0]] = b""
            elif isinstance(other := files.get(item[0], item[1]), Path) and not other.samefile(item[1]):
                problems.append(Problem(f"{key}: both '{other}' and '{item[1]}' would be '{item[0]}'"))
            else:
                files[item[0]] = item[1]
    for name, text in content.items():
        inner = name.strip("/")
        if not inner or {"..", ".", ""} & set(inner.split("/")):
            problems.append(Problem(f"{content_key}: '{name}' is not a path of a file"))
        files[inner] = text.encode()
    problems += [Problem(f"'{name}' would be both a file and a directory") for name in _conflicts(files)]
    if problems:
        raise TemplateError(problems)
    return files


def _conflicts(files: Files) -> Iterator[str]:
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    folders |= {name.rstrip("/") for name in files if name.endswith("/")}
    yield from sorted(folders & files.keys())


def _gather(patterns: Sequence[str], *, recursive: bool) -> list[tuple[str, Path] | str]:
    """(path on the medium, file) of everything the patterns name; a plain string says what is wrong with one."""
    found: list[tuple[str, Path] | str] = []
    for pattern in patterns:
        matches = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - keeps a last '/'
        if not matches:
            what = "matches nothing" if glob.has_magic(pattern) else "does not exist"
            found.append(f"'{pattern}' {what}")
        for match in matches:
            found += _tree(match) if recursive else _flat(match)
    return found


def _flat(match: str) -> Iterator[tuple[str, Path] | str]:
    path = Path(match)
    if path.is_dir():
        yield from (_one(child.name, child) for child in sorted(path.iterdir()) if not child.is_dir())
    else:
        yield _one(path.name, path)


def _tree(match: str) -> Iterator[tuple[str, Path] | str]:
    path = Path(match)
    if path.is_dir():
        name = path.resolve().name if path.name in ("", "..") else path.name
        inside = "" if match.endswith(("/", "/.")) or match == "." else f"{name}/"
        yield from _below(path, inside, ())
    else:
        yield _one(path.name, path)


def _below(folder: Path, inside: str, above: tuple[Path, ...]) -> Iterator[tuple[str, Path] | str]:
    """Everything in a directory; links are followed, and a link to a directory above is refused."""
    true = folder.resolve()
    if true in above:
        yield f"'{folder}' is a link to a directory that holds it"
        return
    children = sorted(folder.iterdir())
    if not children and inside:
        yield inside, folder
    for child in children:
        if child.is_dir():
            yield from _below(child, f"{inside}{child.name}/", (*above, true))
        else:
            yield _one(inside + child.name, child)


def _one(name: str, path: Path) -> tuple[str, Path] | str:
    try:
        status = path.stat()
    except OSError as error:
        return f"can't read '{path}': {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return f"'{path}' is neither a file nor a directory"
    return (name, path) if os.access(path, os.R_OK) else f"can't read '{path}': Permission denied"
