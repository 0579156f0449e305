"""Construction of the model from a config."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from samcp.errors import UsageError, naming_config_key
from samcp.modeling.affinity_decoder import DCA_SOURCES, AffinityDecoder
from samcp.modeling.baselines import BASELINES, BaselineInference
from samcp.modeling.class_embedding import (
    AgnosticClassEmbedding,
    ClassEmbedding,
    CLIPClassEmbedding,
    LearnedClassEmbedding,
    check_prompts,
)
from samcp.modeling.classifier import Classifier
from samcp.modeling.criterion import Criterion
from samcp.modeling.inference import MERGE_RULES, Inference
from samcp.modeling.matcher import HungarianMatcher
from samcp.modeling.naming import build_namer
from samcp.modeling.open_vocabulary import FUSION_RULES, ScoreFusion
from samcp.modeling.patch_encoder import PatchEncoder, RoIEmbedding
from samcp.modeling.queries import SEMANTIC_QUERY_CLASSES, QueryBuilder
from samcp.modeling.targets import TargetBuilder
from samcp.vocabulary import Vocabulary


def build_parts(cfg: CfgNode, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the arguments of :class:`samcp.SAMCP`.

    Raises:
        UsageError: a key has an invalid value.
        CheckpointError: pretrained weights of the backbone or of the text encoder are missing.
    """
    options = cfg.MODEL.SAMCP
    _check_options(options)
    backbone = build_backbone(cfg)
    unknown = set(options.IN_FEATURES) - backbone.output_shape().keys()
    if unknown:
        raise UsageError(
            f"MODEL.SAMCP.IN_FEATURES has unknown levels {', '.join(sorted(unknown))}; the backbone has "
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
        "inference": _build_inference(cfg, vocabulary),
        "vocabulary": vocabulary,
        "semantic_queries": options.SEMANTIC_QUERIES,
        "denoising": _denoising_options(options),
        "buildable_iou": options.TARGETS.BUILDABLE_IOU,
        "fusion": _build_fusion(cfg),
        "namer": build_namer(cfg),
        "roi_size": options.ROI_SIZE,
        "oracle": cfg.TEST.ORACLE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


def _check_options(options: CfgNode) -> None:
    """Raise UsageError with the key for values that a constructor would reject."""
    choices = {
        "SEMANTIC_QUERIES": (options.SEMANTIC_QUERIES, SEMANTIC_QUERY_CLASSES),
        "DCA": (options.DCA, DCA_SOURCES),
        "TEST.MERGE": (options.TEST.MERGE, MERGE_RULES),
        "TEST.BASELINE": (options.TEST.BASELINE, ("", *BASELINES)),
        "OPEN_VOCABULARY.FUSION": (options.OPEN_VOCABULARY.FUSION, FUSION_RULES),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise UsageError(f"MODEL.SAMCP.{key} is {value!r}; choose {' or '.join(map(repr, allowed))}")
    for key in ("KAPPA", "KAPPA_UNSEEN"):
        if not 0 <= options.OPEN_VOCABULARY[key] <= 1:
            raise UsageError(
                f"MODEL.SAMCP.OPEN_VOCABULARY.{key} is {options.OPEN_VOCABULARY[key]}; it must be between 0 and 1"
            )
    if options.DEC_LAYERS < 1:
        raise UsageError(f"MODEL.SAMCP.DEC_LAYERS is {options.DEC_LAYERS}; it must be at least 1")
    if options.HIDDEN_DIM % options.NHEADS:
        raise UsageError(
            f"MODEL.SAMCP.HIDDEN_DIM ({options.HIDDEN_DIM}) is not a multiple of MODEL.SAMCP.NHEADS ({options.NHEADS})"
        )


def _build_inference(cfg: CfgNode, vocabulary: Vocabulary) -> Inference:
    options = cfg.MODEL.SAMCP.TEST
    arguments = {
        "thing_classes": [i for i, thing in enumerate(vocabulary.is_thing) if thing],
        "num_classes": len(vocabulary.names),
        "semantic_on": options.SEMANTIC_ON,
        "instance_on": options.INSTANCE_ON,
        "panoptic_on": options.PANOPTIC_ON,
        "top_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
        "semantic_threshold": options.SEMANTIC_THRESHOLD,
        "score_threshold": options.SCORE_THRESHOLD,
        "affinity_threshold": options.AFFINITY_THRESHOLD,
        "overlap_threshold": options.OVERLAP_THRESHOLD,
        "nested_threshold": options.NESTED_THRESHOLD,
        "member_threshold": options.MEMBER_THRESHOLD,
        "merge": options.MERGE,
        "sem_seg_scores": options.SEM_SEG_SCORES,
        "prompts_on": options.PROMPTS_ON,
    }
    return BaselineInference(baseline=options.BASELINE, **arguments) if options.BASELINE else Inference(**arguments)


def _build_fusion(cfg: CfgNode) -> ScoreFusion | None:
    options = cfg.MODEL.SAMCP.OPEN_VOCABULARY
    if not options.ENABLED or options.KAPPA == options.KAPPA_UNSEEN == 0:
        return None
    is_clip = cfg.MODEL.BACKBONE.NAME == "build_clip_fpn_backbone" and cfg.MODEL.SAMCP.TEXT.ENCODER == "clip"
    if not is_clip and not cfg.MODEL.SAMCP.NAMING.ENCODER:
        raise UsageError(
            "MODEL.SAMCP.OPEN_VOCABULARY.ENABLED needs CLIP for images and for words, MODEL.BACKBONE.NAME "
            "build_clip_fpn_backbone and MODEL.SAMCP.TEXT.ENCODER clip, or MODEL.SAMCP.NAMING.ENCODER"
        )
    return ScoreFusion(clip_weight=options.KAPPA, clip_weight_unseen=options.KAPPA_UNSEEN, rule=options.FUSION)


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
    if options.ENCODER == "agnostic":
        return AgnosticClassEmbedding(vocabulary.words, options.LEARNED_DIM)
    if options.ENCODER == "clip":
        with naming_config_key("MODEL.SAMCP.TEXT.PROMPTS"):
            check_prompts(options.PROMPTS)
        with naming_config_key("MODEL.CLIP"):
            return CLIPClassEmbedding(
                vocabulary.words, name=clip.NAME, pretrained=clip.PRETRAINED, prompts=options.PROMPTS
            )
    raise UsageError(f"MODEL.SAMCP.TEXT.ENCODER is {options.ENCODER!r}; choose 'clip', 'learned' or 'agnostic'")
