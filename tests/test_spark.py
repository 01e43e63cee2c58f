"""A .tar.gz with Spark's own means, without any unpack step: real PySpark, executors in processes of their own.

Not part of CI, as it installs half a gigabyte: run it with FASTPACK_TEST_SPARK=1, with Java, pyspark, pandas, pyarrow and a channel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import run_fastpack

pytestmark = pytest.mark.skipif(not os.environ.get("FASTPACK_TEST_SPARK"), reason="FASTPACK_TEST_SPARK is not set")

JOB = """
import pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql.functions import pandas_udf

spark = SparkSession.builder.getOrCreate()

@pandas_udf("string")
def where(column: pd.Series) -> pd.Series:
    import ssl, sys, numpy
    return column.map(lambda n: f"{sys.executable}|{sys.prefix}|{numpy.square(n)}")

for row in spark.range(4).select(where("id").alias("where")).collect():
    print("ROW", row["where"])
"""


def test_a_pandas_udf_runs_in_the_archive(make_from_channel: Callable[[str], None], tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    make_from_channel(source)
    subprocess.run([f"{source}/bin/python", "-m", "pip", "install", "-q", "pandas", "pyarrow"], check=True)
    assert run_fastpack("pack", "-p", source, "-o", tmp_path / "env.tar.gz").code == 0
    shutil.rmtree(source)
    (tmp_path / "job.py").write_text(JOB)
    spark = os.path.join(os.path.dirname(sys.executable), "spark-submit")
    done = subprocess.run(
        [spark, "--master", "local-cluster[2,1,1024]", "--archives", "env.tar.gz#environment", "job.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYSPARK_DRIVER_PYTHON": sys.executable, "PYSPARK_PYTHON": "./environment/bin/python"},
    )  # fmt: skip
    rows = sorted(line[4:].split("|") for line in done.stdout.splitlines() if line.startswith("ROW "))
    assert sorted(int(square) for _, _, square in rows) == [0, 1, 4, 9], done.stdout[-2000:] + done.stderr[-2000:]
    for executable, prefix, _ in rows:
        assert executable == f"{prefix}/bin/python" and prefix.endswith("/environment")
