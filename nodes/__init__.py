"""ComfyUI nodes: schema, tooltips and a short execute over the layers below."""

from comfy_api.latest import ComfyExtension

from .demo_model import DemoModel
from .load_reward import LoadReward
from .plot import RewardPlot
from .rewards import RewardMixer, RewardScorer
from .sampler import TTRLRunResult, TTRLSampler
from .save import SaveImageWithReport
from .search import SDELatentSearch
from .settings import PaperSettings, SearchSettingsNode, SteeredSettings
from .vlm import VLMReward


class FlowTTRLExtension(ComfyExtension):
    async def get_node_list(self):
        return [
            DemoModel,
            LoadReward,
            VLMReward,
            RewardMixer,
            RewardScorer,
            SearchSettingsNode,
            PaperSettings,
            SteeredSettings,
            SDELatentSearch,
            TTRLSampler,
            TTRLRunResult,
            RewardPlot,
            SaveImageWithReport,
        ]
