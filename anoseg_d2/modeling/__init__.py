"""Build the network with its class heads, losses, adapters and anomaly scores.

- `EoMT`: the meta-architecture: losses in training, scores at inference.
- `PatchModel`: a bare ViT with patch heads: scores without a segmentation network.
- `build_vit`: the timm ViT that carries the queries, without weights.
- `CLASS_HEADS`, `ClassHead`: the registered class heads, and the base class for your own.
- `SetCriterion`: matches queries with targets and sums the losses.
- `QueryMask`: what each query may attend to while masked attention is annealed away.
- `inject_lora`, `lora_state_dict`, `merge_lora`: insert adapters, read them out, and fold them
  into the weights.
- `SCORES`, `anomaly_scores`, `register_score`: the registered anomaly scores, all computed from one
  forward pass, and how to add one.
- `PATCH_HEADS`, `PatchHead`: the registered maps of patch tokens (`PatchMemory`, `RatioHead`), and
  the base class for your own.
- `InferenceOptions`, `ModelInfo`: how a model is used, and what is known about it.
- `plan_windows`: how an image of any size is cut into what the network sees.
"""

from anoseg_d2.utils.index import lazy_index

# Resolved on first use, so that scores and losses import without detectron2.
__all__, __getattr__, __dir__ = lazy_index(
    __name__,
    {
        "eomt": ["EoMT"],
        "patch_model": ["PatchModel"],
        "vit": ["build_vit"],
        "heads": ["CLASS_HEADS", "ClassHead"],
        "criterion": ["SetCriterion"],
        "annealing": ["QueryMask"],
        "lora": ["inject_lora", "lora_state_dict", "merge_lora"],
        "scores": ["SCORES", "anomaly_scores", "register_score"],
        "patch_heads": ["PATCH_HEADS", "PatchHead", "PatchMemory", "RatioHead"],
        "inference": ["InferenceOptions"],
        "model_info": ["ModelInfo"],
        "windows": ["plan_windows"],
    },
)
