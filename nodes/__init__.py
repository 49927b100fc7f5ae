"""ComfyUI nodes: schema, tooltips and a short execute over the layers below."""

from comfy_api.latest import ComfyExtension

from .demo_model import DemoModel
from .plot import RewardPlot
from .rewards import RewardMixer, RewardScorer
from .search import SDELatentSearch, SearchSettingsNode


class FlowTTRLExtension(ComfyExtension):
    async def get_node_list(self):
        return [
            DemoModel,
            RewardMixer,
            RewardScorer,
            SearchSettingsNode,
            SDELatentSearch,
            RewardPlot,
        ]
