"""What the widgets of the strategies' parameters say, in the order in which nodes show them."""

PAPER = {
    "scale_factor": "Step size of an update, at any resolution.",
    "rl_iterations": "Updates per search step (K).",
    "beta": "PRDP's temperature and the weight of the KL to the reference trajectory.",
    "noise_range": "Noise level (eta) of the stochastic step, from first to last search step.",
    "group_size": "Candidates per search step (G), at least 2.",
    "internal_reward_timestep": "Share of the steps, from the start, that use PRDP. 0: GRPO only.",
    "external_reward_timestep": "Share of the steps that search, PRDP's included. 0: none does. A "
    "budget shortens it.",
    "gradient": "exact: differentiates through the model. jacobian_free: no backward pass, least "
    "memory.",
}
PAPER_ADVANCED = {
    "beta1": "PRDP's temperature alone. -1: as beta.",
    "beta2": "Weight of the KL alone; 0 is none. -1: as beta.",
    "prdp_scale": "Multiplies scale_factor in the PRDP steps.",
    "grpo_scale": "Multiplies scale_factor in the GRPO steps.",
    "clip": "Clip of the log-ratios (PRDP) and ratios (GRPO).",
    "adv_clip_max": "Clip of the advantages.",
    "reward_diff_threshold": "PRDP compares pairs whose rewards differ by more. 0: all pairs.",
    "rationorm": "GRPO's ratio normalised per sample.",
}
STEERED = {
    "draft_steps": "Steps of a draft of the whole schedule. More: clearer and dearer.",
    "rounds": "Rounds of drafts, where the budget pays for them; at least 1.",
    "decay": "Candidates of a round over those of the round before, up to 1.",
    "correlation": "How like its parent's noise a candidate's noise is, 0..1.",
    "parents": "Best drafts that a round's candidates are around; at least 1.",
}
