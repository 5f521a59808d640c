"""Our quantiles are numpy's."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gruard.models.quantiles import quantile


@pytest.mark.parametrize("q", [0.0, 0.1, 0.25, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("shape", [(1,), (2,), (7, 3), (500, 4)])
def test_quantile_equals_numpys(q: float, shape: tuple[int, ...]) -> None:
    """Linear interpolation between order statistics, whatever the length."""
    x = np.random.default_rng(0).standard_normal(shape)
    np.testing.assert_allclose(quantile(x, q), np.quantile(x, q, axis=0), atol=1e-12)


def test_scoring_never_loads_masked_arrays() -> None:
    """A detector that warms up and enrols leaves numpy.ma out of the process."""
    code = (
        "import sys, numpy as np; from gruard.models import Detector\n"
        "d = Detector(fields=2, warmup=400)\n"
        "for t in range(60): d.update(float(t), np.array([t % 5, 1.0]))\n"
        "sys.exit('numpy.ma' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
