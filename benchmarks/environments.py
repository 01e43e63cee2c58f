"""The environments that are measured, made from what anybody can have.

small     python, numpy and pip from a conda channel; without one, what `fastpack demo` makes
gpu       as in life: pip installs torch, CUDA and a data scientist's tools into it (6.5 GB, 56,000 files)
gpu-conda the same with the torch, triton and nvidia wheels as conda packages: 5 GB are managed
many      300,000 small files beside the small one
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import random
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from fastpack.demo import make_channel_environment, make_environment

WHEELS = ["torch==2.14.1", "torchvision==0.29.1", "pandas", "scipy", "matplotlib", "jupyterlab", "transformers"]
SPECS = ["python 3.11.*", "pip", "numpy"]
#: The distributions that `gpu-conda` has as conda packages.
REPACKED = ("torch", "triton", "nvidia_")
N_FILES = 300_000

#: What shows that an environment works after it was moved.
CHECKS = {
    "small": '"$TARGET/bin/python" -c "import json, ssl, sqlite3"',
    "gpu": '"$TARGET/bin/python" -c "import torch, scipy, pandas; assert torch.ones(3).sum().item() == 3"',
    "many": '"$TARGET/bin/python" -c "import many.d0299.f0999"',
}
CHECKS["gpu-conda"] = CHECKS["gpu"]


def small(prefix: str, channel: str | None) -> None:
    """Python and numpy as conda packages, or the demo's environment."""
    if channel is None:
        make_environment(prefix)
    else:
        make_channel_environment([channel], SPECS, prefix, f"{prefix}-packages")


def gpu(prefix: str, channel: str | None) -> None:
    """The small environment with pip's packages in it."""
    small(prefix, channel)
    _pip(prefix)


def gpu_conda(prefix: str, channel: str | None) -> None:
    """As `gpu`, the largest wheels as conda packages. Needs a channel."""
    if channel is None:
        raise SystemExit("gpu-conda needs --channel")
    wheels = f"{prefix}-wheels"
    gpu(wheels, channel)
    repacked = f"{prefix}-channel"
    names = [_repack(wheels, found, repacked) for found in _distributions(wheels)]
    _index(repacked)
    make_channel_environment([channel, repacked], [*SPECS, *names], prefix, f"{prefix}-packages")
    _pip(prefix)


def many(prefix: str, channel: str | None) -> None:
    """Modules of up to 2 kB, a thousand in each of 300 directories."""
    small(prefix, channel)
    rng = random.Random(4)
    words = [f"word{k}" for k in range(1000)]
    folder = next(Path(prefix, "lib").glob("python3*")) / "site-packages" / "many"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    for k in range(N_FILES):
        if k % 1000 == 0:
            below = folder / f"d{k // 1000:04}"
            below.mkdir()
        text = " ".join(rng.choices(words, k=rng.randrange(5, 300)))
        (below / f"f{k % 1000:04}.py").write_text(f'"""{text}"""\n')


MAKERS: dict[str, Callable[[str, str | None], None]] = {
    "small": small, "gpu": gpu, "gpu-conda": gpu_conda, "many": many,
}  # fmt: skip


def _pip(prefix: str) -> None:
    command = [f"{prefix}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *WHEELS]
    subprocess.run(command, check=True)


def _distributions(prefix: str) -> list[importlib.metadata.Distribution]:
    folder = next(Path(prefix, "lib").glob("python3*")) / "site-packages"
    found = importlib.metadata.distributions(path=[str(folder)])
    return [one for one in found if one.metadata["Name"].replace("-", "_").startswith(REPACKED) and _wanted(one)]


def _wanted(found: importlib.metadata.Distribution) -> bool:
    return not found.metadata["Name"].startswith("torchvision")


def _repack(prefix: str, found: importlib.metadata.Distribution, channel: str) -> str:
    """A distribution that pip installed as a ``.conda`` package; its name."""
    name = found.metadata["Name"].replace("_", "-").lower()
    stem = f"{name}-{found.version}-0"
    os.makedirs(f"{channel}/linux-64", exist_ok=True)
    paths: list[dict[str, object]] = []

    def files() -> Iterator[tuple[tarfile.TarInfo, BinaryIO]]:
        for file in found.files or []:
            full = os.path.normpath(str(found.locate_file(file)))
            path = os.path.relpath(full, prefix)
            if path.startswith("..") or "__pycache__" in path or not os.path.isfile(full):
                continue
            paths.append(_path_row(full, path, prefix))
            info = tarfile.TarInfo(path)
            info.size, info.mode = os.stat(full).st_size, os.stat(full).st_mode & 0o777
            with open(full, "rb") as content:
                yield info, content

    def about() -> Iterator[tuple[tarfile.TarInfo, BinaryIO]]:
        index = {
            "name": name, "version": found.version, "build": "0", "build_number": 0, "depends": ["python 3.11.*"],
            "subdir": "linux-64", "platform": "linux", "arch": "x86_64", "license": "see the wheel", "timestamp": 0,
        }  # fmt: skip
        for path, value in (("info/index.json", index), ("info/paths.json", {"paths": paths, "paths_version": 1})):
            data = json.dumps(value).encode()
            info = tarfile.TarInfo(path)
            info.size = len(data)
            yield info, io.BytesIO(data)

    with zipfile.ZipFile(f"{channel}/linux-64/{stem}.conda", "w", zipfile.ZIP_STORED) as package:
        package.writestr("metadata.json", '{"conda_pkg_format_version": 2}')
        for part, members in (("pkg", files), ("info", about)):
            _write_tar(f"{channel}/part", members())
            package.write(f"{channel}/part", f"{part}-{stem}.tar.zst")
            os.unlink(f"{channel}/part")
    return f"{name} {found.version}.*"


def _write_tar(out: str, members: Iterable[tuple[tarfile.TarInfo, BinaryIO]]) -> None:
    compressor = zstandard.ZstdCompressor(level=1, threads=-1)
    with (
        open(out, "wb") as file,
        compressor.stream_writer(file) as packed,
        tarfile.open(mode="w|", fileobj=packed, format=tarfile.GNU_FORMAT) as tar,
    ):
        for info, content in members:
            tar.addfile(info, content)


def _path_row(full: str, path: str, prefix: str) -> dict[str, object]:
    digest, names = hashlib.sha256(), False
    with open(full, "rb") as file:
        while piece := file.read(8 << 20):
            digest.update(piece)
            names = names or (path.startswith("bin/") and prefix.encode() in piece)
    row: dict[str, object] = {
        "_path": path, "path_type": "hardlink", "sha256": digest.hexdigest(), "size_in_bytes": os.stat(full).st_size,
    }  # fmt: skip
    if names:
        row |= {"prefix_placeholder": prefix, "file_mode": "text"}
    return row


def _index(channel: str) -> None:
    import asyncio  # noqa: PLC0415

    from rattler import index  # noqa: PLC0415

    os.makedirs(f"{channel}/noarch", exist_ok=True)
    asyncio.run(index.index_fs(channel, force=True))
