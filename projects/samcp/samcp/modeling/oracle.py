"""Oracle predictions, the ground-truth affinity: an upper bound for given patches."""

import torch
from torch import Tensor

from samcp.modeling.inference import Predictions


def oracle_predictions(inputs: dict, semantic_classes: Tensor, num_classes: int) -> Predictions:
    """Return predictions for one image with scores 1 and the ground-truth affinity G.

    Each ground-truth instance is an instance query; each class that is in the image and has a semantic query is a
    semantic query. The resulting segmentation is the best one that these patches allow.

    Args:
        inputs: the mapper's dict with targets (``instances`` and ``sem_segments``).
    """
    regions, instances = inputs["sem_segments"], inputs["instances"]
    has_query = torch.isin(regions.gt_classes, semantic_classes.cpu())
    regions = regions[has_query & regions.gt_affinity.any(-1)]
    return Predictions(
        semantic_classes=regions.gt_classes,
        semantic_scores=torch.ones(len(regions)),
        semantic_affinity=regions.gt_affinity.float(),
        instance_scores=torch.nn.functional.one_hot(instances.gt_classes, num_classes).float(),
        instance_affinity=instances.gt_affinity.float(),
    )
