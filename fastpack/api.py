"""What ``import fastpack`` gives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from fastpack import delta as _delta
from fastpack import environment, errors
from fastpack import inspecting as _inspecting
from fastpack import packing as _packing
from fastpack import relocating as _relocating
from fastpack import sizes as _sizes
from fastpack import unpacking as _unpacking
from fastpack import verifying as _verifying
from fastpack.cache import DEFAULT_BYTES
from fastpack.model import (
    ApplyReport,
    DeltaReport,
    DiffReport,
    DiskUsageReport,
    InspectReport,
    PackReport,
    RelocateReport,
    StatusReport,
    UnpackReport,
    VerifyReport,
)
from fastpack.parallel import no_collection


class Environment(environment.Environment):
    """A conda environment as it lies on disk, with `pack`.

    Examples
    --------
    >>> fastpack.Environment.from_name("training").exclude("*.a").pack(output="training.tar.zst")
    """

    __slots__ = ()

    def pack(self, output: str | None = None, **options: Any) -> PackReport:
        """Pack this environment, with its filters: see `fastpack.pack` for the options."""
        return _packing.pack(self, _options(output, **options))


def _options(
    output: str | None = None, *, verbose: bool = False, pad: Sequence[str] = (), base: str | None = None,
    cache: str | None = None, **options: Any,
) -> _packing.Options:  # fmt: skip
    """The options as `packing` has them; a TypeError for one that it does not."""
    return _packing.Options(
        output=None if output is None else os.fspath(output),
        pad=tuple(pad),
        base=None if base is None else os.fspath(base),
        cache=None if cache is None else os.fspath(cache),
        **options,
    )


@no_collection()
def pack(
    name: str | None = None,
    prefix: str | None = None,
    output: str | None = None,
    format: str = "infer",
    arcroot: str = "",
    dest_prefix: str | None = None,
    parcel_root: str | None = None,
    parcel_name: str | None = None,
    parcel_version: str | None = None,
    parcel_distro: str | None = None,
    verbose: bool = False,
    force: bool = False,
    compress_level: int | None = None,
    n_threads: int = 0,
    zip_symlinks: bool = False,
    zip_64: bool = True,
    filters: Sequence[tuple[str, str]] | None = None,
    ignore_editable_packages: bool = False,
    ignore_missing_files: bool = False,
    *,
    on_missing: str = "error",
    on_modified: str = "warn",
    editable: str = "error",
    pyc: str | None = None,
    verify_source: bool = False,
    verify_content: bool = False,
    prefix_is_unique: bool = False,
    strict: bool = False,
    pad: Sequence[str] = (),
    external_links: str = "warn",
    base: str | None = None,
    base_id: str | None = None,
    reuse_any: bool = False,
    trust_base: bool = False,
    cache: str | None = None,
    cache_bytes: int = DEFAULT_BYTES,
) -> PackReport:
    """Pack a conda environment into one archive. The keywords are those of ``conda_pack.pack``, and ours.

    Parameters
    ----------
    name, prefix : which environment; at most one of them. Neither: the active one.
    output : the archive; ``-`` for standard output. Default: the environment's name and the format's suffix.
    format : ``infer`` (from the output's name, else ``tar.zst``), ``tar.zst``, ``tar.gz``, ``tar.bz2``, ``tar.xz``,
        ``tar``, ``zip``, ``parcel``, ``squashfs`` or ``no-archive`` (a directory).
    arcroot : a directory to put before every member's name; ``unpack`` takes it off.
    dest_prefix : place everything for that prefix; the archive then has no ``bin/conda-unpack``.
    verbose : accepted for conda_pack's callers; a library prints nothing.
    force : replace an output that is there; it is the base, unless one is given.
    base : an earlier archive: frames whose bytes did not change are copied from it.
    base_id : refuse any base but the archive with this id.
    reuse_any : copy frames of another compression level or other libraries too.
    trust_base : copy its frames without reading them, by reference where the file system can: what is damaged in the
        base is then damaged in the new archive.
    cache, cache_bytes : a directory that keeps the frames of all environments, and how large it may be.
    compress_level : zstd 1 to 22 (default: chosen for each frame by its bytes), gzip and zip 0 to 9 (default 4), bzip2
        1 to 9 (9), xz 0 to 9 (6), squashfs 0 (stored) to 8 (zstd), 9 (xz), default 4.
    n_threads : 0 or -1 for all cores.
    filters : ``("exclude" | "include", pattern)`` or ``("slim", kind)`` (see kinds.py), applied in order.
    ignore_editable_packages, ignore_missing_files : go on where that would be an error.
    on_missing : of packages' files that are not on disk: ``error``, ``warn`` or ``ignore``.
    on_modified : of packages' files that were changed since: ``error``, ``warn`` or ``ignore``; they are packed as they
        are on disk.
    editable : of packages that are installed in place: ``error``, ``include`` (their code comes along, below
        ``src/``), ``drop`` or ``ignore`` (packed as they are).
    pyc : ``timestamp``, ``checked-hash`` (default for zip: valid also where no times are kept) or ``drop``.
    verify_source : hold every managed file against its sha256, however large.
    verify_content : read every file, also those that have not changed since an earlier pack read them.
    prefix_is_unique : replace mentions of a prefix such as ``/usr/local`` in unmanaged files too.
    strict : refuse if a file or link depends on the source prefix and cannot be relocated; unmanaged binaries then
        also limit the prefixes that the archive can be unpacked at.
    pad : how managed binaries are padded at a prefix: ``conda``, ``slash`` or ``GLOB=slash``; the last that matches.
    external_links : ``warn``, ``keep`` or ``error``: links that lead out of the environment.
    parcel_root, parcel_name, parcel_version, parcel_distro : where parcels lie on the cluster
        (``/opt/cloudera/parcels``), the name (the environment's), the version (today's date) and ``el7``.
    zip_symlinks : store links in a zip file, instead of copies of what they lead to.
    zip_64 : whether a zip file may use ZIP64 extensions.

    Raises
    ------
    FastpackError : see fastpack.errors.
    """
    if name and prefix:
        raise errors.UsageError("give a name or a prefix, not both", found=f"{name} and {prefix}")
    if prefix:
        env = Environment.from_prefix(os.fspath(prefix))
    elif name:
        env = Environment.from_name(name)
    else:
        env = Environment.from_default()
    for kind, pattern in filters or ():
        if kind not in ("exclude", "include", "slim"):
            raise errors.UsageError("an unknown kind of filter", expected="exclude, include or slim", found=kind)
        env = getattr(env, kind)(pattern)
    return env.pack(
        output, format=format, arcroot=arcroot, dest_prefix=dest_prefix, parcel_root=parcel_root,
        parcel_name=parcel_name, parcel_version=parcel_version, parcel_distro=parcel_distro, verbose=verbose,
        force=force, compress_level=compress_level, n_threads=n_threads, zip_symlinks=zip_symlinks, zip_64=zip_64,
        ignore_editable_packages=ignore_editable_packages, ignore_missing_files=ignore_missing_files,
        on_missing=on_missing, on_modified=on_modified, editable=editable, pyc=pyc,
        verify_source=verify_source, verify_content=verify_content, prefix_is_unique=prefix_is_unique, strict=strict,
        pad=pad, external_links=external_links, base=base, base_id=base_id, reuse_any=reuse_any,
        trust_base=trust_base, cache=cache, cache_bytes=cache_bytes,
    )  # fmt: skip


@no_collection()
def unpack(
    archive: str,
    prefix: str,
    *,
    dest_prefix: str | None = None,
    force: bool = False,
    n_threads: int = 0,
    pad: Sequence[str] = (),
    strict: bool = False,
    external_links: str | None = None,
    ignore_requirements: bool = False,
    durable: bool = False,
    if_changed: bool = False,
    base: str | None = None,
    in_place: bool = False,
    keep: int = 1,
    hardlink: bool = False,
    verify_content: bool = False,
    on_modified: str = "error",
) -> UnpackReport:
    """Unpack an archive, or a delta, into a directory, relocated to it: see `fastpack.unpacking` for the options."""
    options = _unpacking.Options(
        dest_prefix, force, n_threads, tuple(pad), strict, external_links, ignore_requirements, durable, if_changed,
        None if base is None else os.fspath(base), in_place, keep, hardlink, verify_content, on_modified,
    )  # fmt: skip
    return _unpacking.unpack(os.fspath(archive), os.fspath(prefix), options)


@no_collection()
def relocate(prefix: str, **options: Any) -> RelocateReport:
    """Put an environment's own prefix into its files, wherever it lies now: see `fastpack.relocating.relocate`."""
    return _relocating.relocate(os.fspath(prefix), **options)


@no_collection()
def verify(target: str, *, deep: bool = False, n_threads: int = 0) -> VerifyReport:
    """Hold an archive, or an unpacked environment, against its manifest: see `fastpack.verifying.verify`."""
    return _verifying.verify(os.fspath(target), deep=deep, n_threads=n_threads)


def inspect(archive: str) -> InspectReport:
    """What an archive says of itself: see `fastpack.inspecting.inspect`."""
    return _inspecting.inspect(os.fspath(archive))


def status(prefix: str) -> StatusReport:
    """Where an environment thinks it lies, and whether that is true: see `fastpack.inspecting.status`."""
    return _inspecting.status(os.fspath(prefix))


def disk_usage(target: str) -> DiskUsageReport:
    """What makes an environment or an archive so big: see `fastpack.sizes.disk_usage`."""
    return _sizes.disk_usage(os.fspath(target))


@no_collection()
def diff(old: str, new: str) -> DiffReport:
    """What changed between two archives, or an archive and an environment: see `fastpack.delta.diff`."""
    return _delta.diff(os.fspath(old), os.fspath(new))


@no_collection()
def make_delta(
    old: str, new: str, output: str, *, force: bool = False, ship: Sequence[str] = ()
) -> DeltaReport:  # fmt: skip
    """Write what makes one archive of another: see `fastpack.delta.delta`."""
    return _delta.delta(os.fspath(old), os.fspath(new), os.fspath(output), force, ship=ship)


@no_collection()
def apply_delta(delta: str, base: str, output: str, *, force: bool = False) -> ApplyReport:
    """Put an archive together from a delta and an older archive: see `fastpack.delta.apply`."""
    return _delta.apply(os.fspath(delta), os.fspath(base), os.fspath(output), force)
