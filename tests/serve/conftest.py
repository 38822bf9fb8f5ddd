from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.server import PRESETS, Running, save_models, serving


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def server(models: dict[str, Any]) -> Iterator[Running]:
    limits = {"max_tokens": 40, "max_rows": 8, "max_beta": 4.0, "max_responses": 8}
    sampling = {"max_new_tokens": 16}
    with serving({**models, "guidance": PRESETS, "sampling": sampling, "serve": limits}) as running:
        yield running
