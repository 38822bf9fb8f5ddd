"""How many examples each fuzz test tries: 50 with a fixed seed, or as many new ones as `make fuzz` asks for.

What a fuzz test has found is kept as an `@example` beside it, or as a line of the table in tests/bad_inputs.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

NUM_EXAMPLES = int(os.environ.get("IVG_FUZZ_EXAMPLES", "0"))

fuzz = settings(
    max_examples=NUM_EXAMPLES or 50,
    derandomize=NUM_EXAMPLES == 0,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
