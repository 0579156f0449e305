"""The parts of the model from a config."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from ..config import UsageError
from ..data.vocabulary import Vocabulary
from .affinity_decoder import AffinityDecoder
from .classifier import Classifier
from .criterion import Criterion
from .inference import Inference
from .matcher import HungarianMatcher
from .open_vocabulary import ScoreFusion
from .patch_encoder import PatchEncoder, RoIEmbedding
from .queries import QueryBuilder
from .targets import TargetBuilder
from .text_encoder import ClassEmbedding, CLIPClassEmbedding, LearnedClassEmbedding


def build_parts(cfg: CfgNode, vocabulary: Vocabulary) -> dict[str, Any]:
    """The arguments of :class:`samcp.SAMCP`.

    Raises:
        UsageError: a key has a value that cannot be.
        CheckpointError: weights that the backbone or the words begin with are missing.
    """
    options = cfg.MODEL.SAMCP
    backbone = build_backbone(cfg)
    unknown = set(options.IN_FEATURES) - backbone.output_shape().keys()
    if unknown:
        raise UsageError(
            f"MODEL.SAMCP.IN_FEATURES names {', '.join(sorted(unknown))}; the backbone has "
            f"{', '.join(backbone.output_shape())}"
        )
    shapes = [backbone.output_shape()[name] for name in options.IN_FEATURES]
    class_embedding = _build_class_embedding(cfg, vocabulary)
    text_dim = class_embedding.dim
    dim = options.HIDDEN_DIM
    if options.DCA == "image" and shapes[-1].channels != dim:
        raise UsageError(
            f"MODEL.SAMCP.DCA image needs MODEL.FPN.OUT_CHANNELS ({shapes[-1].channels}) to equal "
            f"MODEL.SAMCP.HIDDEN_DIM ({dim})"
        )
    roi_embedding = RoIEmbedding(
        strides=[s.stride for s in shapes],
        in_channels=shapes[0].channels,
        dim=dim,
        roi_size=options.ROI_SIZE,
        fc_dim=options.ROI_FC_DIM,
    )
    transformer = {
        "dim": dim,
        "num_heads": options.NHEADS,
        "ffn_dim": options.FFN_DIM,
        "activation_checkpoint": options.ACTIVATION_CHECKPOINT,
    }
    return {
        "backbone": backbone,
        "in_features": options.IN_FEATURES,
        "class_embedding": class_embedding,
        "patch_encoder": PatchEncoder(
            roi_embedding=roi_embedding,
            num_layers=options.ENC_LAYERS,
            mask_roi=options.MASK_ROI,
            **transformer,
        ),
        "query_builder": QueryBuilder(dim=dim, text_dim=text_dim, instance_queries=options.INSTANCE_QUERIES),
        "decoder": AffinityDecoder(
            num_layers=options.DEC_LAYERS,
            dca=options.DCA,
            dca_mask=options.DCA_MASK,
            affinity_refinement=options.AFFINITY_REFINEMENT,
            query_enhancement=options.QUERY_ENHANCEMENT,
            strides=[s.stride for s in shapes],
            **transformer,
        ),
        "classifier": Classifier(dim=dim, text_dim=text_dim),
        "criterion": Criterion(
            targets=TargetBuilder(
                matcher=HungarianMatcher(
                    cls=options.MATCHER.CLS,
                    mask_focal=options.MATCHER.MASK_FOCAL,
                    dice=options.MATCHER.DICE,
                    l1=options.MATCHER.L1,
                    giou=options.MATCHER.GIOU,
                ),
                self_affinity=options.SELF_AFFINITY,
                thing_loss_only=options.LOSS.THINGS_ONLY,
            ),
            cls=options.LOSS.CLS,
            mask_focal=options.LOSS.MASK_FOCAL,
            dice=options.LOSS.DICE,
            self_affinity=options.LOSS.SELF_AFFINITY,
        ),
        "inference": Inference(
            thing_classes=[i for i, thing in enumerate(vocabulary.is_thing) if thing],
            num_classes=len(vocabulary.names),
            semantic_on=options.TEST.SEMANTIC_ON,
            instance_on=options.TEST.INSTANCE_ON,
            panoptic_on=options.TEST.PANOPTIC_ON,
            top_instances=cfg.TEST.DETECTIONS_PER_IMAGE,
            semantic_threshold=options.TEST.SEMANTIC_THRESHOLD,
            score_threshold=options.TEST.SCORE_THRESHOLD,
            affinity_threshold=options.TEST.AFFINITY_THRESHOLD,
            overlap_threshold=options.TEST.OVERLAP_THRESHOLD,
            member_threshold=options.TEST.MEMBER_THRESHOLD,
            merge=options.TEST.MERGE,
            sem_seg_scores=options.TEST.SEM_SEG_SCORES,
            prompts_on=options.TEST.PROMPTS_ON,
        ),
        "vocabulary": vocabulary,
        "semantic_queries": options.SEMANTIC_QUERIES,
        "denoising": _denoising_options(options),
        "buildable_iou": options.TARGETS.BUILDABLE_IOU,
        "fusion": _build_fusion(cfg),
        "roi_size": options.ROI_SIZE,
        "oracle": cfg.TEST.ORACLE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


def _build_fusion(cfg: CfgNode) -> ScoreFusion | None:
    options = cfg.MODEL.SAMCP.OPEN_VOCABULARY
    if not options.ENABLED or options.KAPPA == options.KAPPA_UNSEEN == 0:
        return None
    if cfg.MODEL.BACKBONE.NAME != "build_clip_fpn_backbone" or cfg.MODEL.SAMCP.TEXT.ENCODER != "clip":
        raise UsageError(
            "MODEL.SAMCP.OPEN_VOCABULARY.ENABLED needs CLIP for images and for words: MODEL.BACKBONE.NAME "
            "build_clip_fpn_backbone and MODEL.SAMCP.TEXT.ENCODER clip"
        )
    return ScoreFusion(kappa=options.KAPPA, kappa_unseen=options.KAPPA_UNSEEN, rule=options.FUSION)


def _denoising_options(options: CfgNode) -> dict | None:
    if not (options.DENOISING.ENABLED and options.INSTANCE_QUERIES):
        return None
    return {
        "max_queries": options.DENOISING.MAX_QUERIES,
        "label_noise": options.DENOISING.LABEL_NOISE,
        "box_noise": options.DENOISING.BOX_NOISE,
    }


def _build_class_embedding(cfg: CfgNode, vocabulary: Vocabulary) -> ClassEmbedding:
    options, clip = cfg.MODEL.SAMCP.TEXT, cfg.MODEL.CLIP
    if options.ENCODER == "learned":
        return LearnedClassEmbedding(vocabulary.words, options.LEARNED_DIM)
    if options.ENCODER == "clip":
        return CLIPClassEmbedding(vocabulary.words, name=clip.NAME, pretrained=clip.PRETRAINED, prompts=options.PROMPTS)
    raise UsageError(f"MODEL.SAMCP.TEXT.ENCODER is {options.ENCODER!r}; choose 'clip' or 'learned'")
