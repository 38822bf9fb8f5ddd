"""The seam holds for an engine that knows nothing of Hugging Face."""

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.engine import PrefixScorer
from ivg.decoding.stopping import StopChecker
from tests.engines.contract import EngineContract
from tests.engines.table_engine import TableEngine
from tests.engines.worlds import World


class TestTableEngine(EngineContract):
    num_samples = 3_000

    def build(
        self,
        world: World,
        search: SearchConfig,
        sampling: SamplingConfig,
        stop_checker: StopChecker,
        scorer: PrefixScorer | None = None,
    ) -> TableEngine:
        return TableEngine(world, search, sampling, stop_checker, scorer)
