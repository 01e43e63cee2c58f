"""A squashfs file, which mksquashfs makes of the tar stream."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from fastpack._place_py import EPOCH_2000, SPAN
from fastpack.codec import CODECS, Codec
from fastpack.errors import FastpackError, NoSpace, UsageError
from fastpack.format import Job, Writer
from fastpack.format_tar import TarWriter
from fastpack.fs import new_file

#: No time that follows from a member's bytes is later than this (2020).
_LATEST = EPOCH_2000 + 2 * SPAN


class Squashfs:
    """A file system to mount, made by squashfs-tools from the tar stream; nothing is staged on the disk.

    Levels are conda-pack's: 0 stores, 9 is xz, those between are a fifth of zstd's.
    """

    name = "squashfs"
    suffix = ".squashfs"
    default_level = 4
    levels = range(10)
    codec: Codec | None = None
    has_frames = False
    pyc = "timestamp"
    hard_links = symbolic_links = True

    def check(self) -> None:
        version = self.versions()["squashfs-tools"]
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < (4, 5):
            raise UsageError(
                "squashfs files are made by mksquashfs", expected="squashfs-tools 4.5 or later on PATH",
                found=version or "none", hint="install it, or choose another format",
            )  # fmt: skip

    def versions(self) -> dict[str, str]:
        try:
            done = subprocess.run(["mksquashfs", "-version"], capture_output=True, text=True, check=False)
        except OSError:
            return {"squashfs-tools": ""}
        found = re.search(r"version (\S+)", done.stdout)
        return {"squashfs-tools": found[1] if found else ""}

    @contextmanager
    def open(self, job: Job) -> Iterator[Writer]:
        if job.output == "-":
            raise UsageError("a squashfs file is not written to a pipe", hint="give it a name with --output")
        compression = ["-b", "262144", "-comp", "zstd", "-Xcompression-level", str(max(1, job.level * 20 // 8))]
        if job.level == 0:
            compression = ["-noI", "-noD", "-noF", "-noX"]
        elif job.level == 9:
            compression = ["-b", "262144", "-comp", "xz"]
        with new_file(job.output, job.force) as out:
            command = [
                "mksquashfs", "-", out.name, "-tar", "-noappend", "-quiet", "-no-progress", "-processors",
                str(job.threads),
                "-root-mode", "755", *compression,
            ]  # fmt: skip
            # The time of the file system and of its root; no member has a later one, which would become this.
            latest = max(_LATEST, *(member.mtime or 0 for member in job.plan.members.others.values()))
            environment = {**os.environ, "SOURCE_DATE_EPOCH": str(latest)}
            broken = False
            with (
                tempfile.TemporaryFile() as messages,
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=messages, env=environment
                ) as process,
            ):
                assert process.stdin is not None
                try:
                    yield TarWriter(process.stdin, CODECS["tar"], 0, job.plan.arcroot)
                    process.stdin.close()
                except BaseException as error:
                    if not isinstance(error, BrokenPipeError):
                        process.kill()
                        raise
                    # It ended before its input did; what it says follows.
                    broken = True
                    with contextlib.suppress(OSError):
                        process.stdin.close()
                code = process.wait()
                messages.seek(0)
                said = messages.read().decode(errors="replace").strip().splitlines()
                if any("No space left" in line or "Failed to write" in line for line in said):
                    raise NoSpace("no space left on the disk", path=job.output, found=said[-1])
                if code or broken:
                    raise FastpackError(
                        f"mksquashfs ended with {code}",
                        path=job.output,
                        found=said[-1] if said else "nothing said",
                    )
