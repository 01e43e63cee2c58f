"""Which kernels run: the native ones, or their twins where the extension is missing or ``FASTPACK_PURE=1`` is set."""

from __future__ import annotations

import errno
import os

from fastpack import _batch_py, _marshal_py, _relocate_py

if os.environ.get("FASTPACK_PURE", "0") not in ("", "0"):
    kernel, batch, marshal = _relocate_py, _batch_py, _marshal_py
    NATIVE = False
else:
    try:
        from fastpack import _batch as batch  # type: ignore[no-redef]
        from fastpack import _marshal as marshal  # type: ignore[no-redef]
        from fastpack import _relocate as kernel  # type: ignore[no-redef]

        NATIVE = True
    except ImportError:
        kernel, batch, marshal = _relocate_py, _batch_py, _marshal_py
        NATIVE = False

#: What `batch.share_files` says where a file system shares no files, or not with this one.
CANNOT_SHARE = frozenset(
    [errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM]
)
