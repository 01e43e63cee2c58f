"""Builds the Cython extensions; everything else stands in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

COMPILE = ["-O3", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function"]
LINK: list[str] = []
if os.environ.get("FASTPACK_WERROR"):
    COMPILE.append("-Werror")
if os.environ.get("FASTPACK_SANITIZE"):
    COMPILE += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
    LINK += ["-fsanitize=address,undefined"]

extensions = [
    Extension(f"fastpack.{name}", [f"fastpack/{name}.pyx"], extra_compile_args=COMPILE, extra_link_args=LINK)
    for name in ("_relocate", "_batch", "_marshal")
]

setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "freethreading_compatible": True,
        },
    )
)
