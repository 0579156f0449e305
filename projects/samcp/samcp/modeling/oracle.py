"""The bound that patches allow: the ground-truth affinity as if it were predicted."""

import torch
from torch import Tensor

from samcp.modeling.inference import Predictions


def oracle_predictions(inputs: dict, semantic_classes: Tensor, num_classes: int) -> Predictions:
    """Perfect scores and the affinity G, for one image.

    Every ground-truth instance is an instance query, every class that has a semantic query and is in the image a
    semantic one; so what the inference makes of them is the best a model can do with these patches.

    Args:
        inputs: the mapper's dict with its targets (``instances`` and ``sem_segments``).
    """
    regions, instances = inputs["sem_segments"], inputs["instances"]
    asked = torch.isin(regions.gt_classes, semantic_classes.cpu())
    regions = regions[asked & regions.gt_affinity.any(-1)]
    return Predictions(
        semantic_classes=regions.gt_classes,
        semantic_scores=torch.ones(len(regions)),
        semantic_affinity=regions.gt_affinity.float(),
        instance_scores=torch.nn.functional.one_hot(instances.gt_classes, num_classes).float(),
        instance_affinity=instances.gt_affinity.float(),
    )
