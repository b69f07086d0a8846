"""A log that another machine wrote is scored again to the last digit, here and without the
CPU's extensions beyond NumPy's baseline.

`stored/eval.jsonl` holds real answers of two small models (88 rows in Chinese and English: closed questions
with probabilities, reports, boxes) and what 29 scorers said of them, without the scores of single rows. After
a change that is meant, `medloupe rescore` writes it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from numpy._core._multiarray_umath import __cpu_dispatch__

from medloupe.evaluate.log import read_log
from medloupe.evaluate.runner import rescore

STORED: Final = Path(__file__).parent / "stored" / "eval.jsonl"
RESCORED: Final = """
import sys
from pathlib import Path

from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

from medloupe.evaluate.log import read_log
from medloupe.evaluate.runner import rescore

assert not any(__cpu_features__[name] for name in __cpu_dispatch__)
print(*rescore(read_log(Path(sys.argv[1]))).metrics, sep="\\n")
"""


def test_the_stored_metrics_come_again_to_the_last_digit() -> None:
    stored = read_log(STORED)
    assert len(stored.rows) == 88
    assert sum(metric.n > 0 for metric in stored.metrics) > 300
    assert list(map(repr, rescore(stored).metrics)) == list(map(repr, stored.metrics))


def test_they_do_so_on_a_machine_without_vector_extensions() -> None:
    """NumPy then takes other code for sums, powers and logarithms."""
    plain = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(__cpu_dispatch__)}
    done = subprocess.run(
        [sys.executable, "-c", RESCORED, str(STORED)],
        env=plain,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [str(metric) for metric in read_log(STORED).metrics]
