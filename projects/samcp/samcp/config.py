"""Config keys that SAM-CP adds to Detectron2's, with their defaults, and loading of configs."""

import argparse

import torch
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from samcp import model_zoo
from samcp.config_files import find_config
from samcp.config_overrides import merge_file, merge_overrides
from samcp.errors import CheckpointError, UsageError

# The 14 templates of ViLD that FC-CLIP uses (B.3).
_VILD_PROMPTS = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    *(
        template.format(size)
        for template in ("a photo of a {} {{}}.", "This is a photo of a {} {{}}.", "There is a {} {{}} in the scene.")
        for size in ("small", "medium", "large")
    ),
)


def add_samcp_config(cfg: CN) -> None:
    """Add SAM-CP's keys to a Detectron2 config, in place."""
    _add_data_config(cfg)
    _add_model_config(cfg)
    _add_loss_config(cfg)
    _add_inference_config(cfg)
    _add_solver_config(cfg)


def _add_data_config(cfg: CN) -> None:
    # Patch caches, one per dataset in DATASETS.TRAIN and DATASETS.TEST, in the same order. Relative paths are relative
    # to the environment variable DETECTRON2_DATASETS.
    cfg.DATASETS.PATCHES_TRAIN = ()
    cfg.DATASETS.PATCHES_TEST = ()
    # Stop if the generation of patches failed for an image (--strict), instead of skipping it in training and counting
    # it as missed in evaluation.
    cfg.DATASETS.STRICT = False
    # Minimum area of a patch after cropping, in pixels of the original image; smaller patches are dropped.
    cfg.INPUT.MIN_PATCH_AREA = 16
    # Crop all images after resizing, as usual for ADE20K; else crop half of the images before resizing, as in DETR.
    cfg.INPUT.CROP.AFTER_RESIZE = False
    # SSD's colour augmentation in training, as in Mask2Former on ADE20K (B.2).
    cfg.INPUT.COLOR_AUG_SSD = False

    # Ground-truth affinity G of patches and entities (METHOD 6; paper 3.2.3, Table 12).
    cfg.MODEL.SAMCP = CN()
    cfg.MODEL.SAMCP.TARGETS = CN()
    cfg.MODEL.SAMCP.TARGETS.IOP_THRESHOLD = 0.8  # tau: G = 1 if the IoP exceeds it
    cfg.MODEL.SAMCP.TARGETS.IGNORE_THRESHOLD = 0.5  # no affinity loss between this and tau
    cfg.MODEL.SAMCP.TARGETS.BOX_IOP = True  # use the IoP of boxes
    cfg.MODEL.SAMCP.TARGETS.MASK_IOP = True  # use the IoP of masks
    cfg.MODEL.SAMCP.TARGETS.LOW_QUALITY_MATCHES = (
        True  # also match patches by IoU, of boxes or, for semantic entities, masks
    )
    # For semantic entities: minimum mask IoU of low-quality matches, and whether pairs between IGNORE_THRESHOLD and tau
    # are ignored; defaults of the released code.
    cfg.MODEL.SAMCP.TARGETS.SEMANTIC_LOW_QUALITY_IOU = 0.1
    cfg.MODEL.SAMCP.TARGETS.SEMANTIC_IGNORE = False
    # Minimum box IoU of an instance and its patches; other instances are excluded from the loss.
    cfg.MODEL.SAMCP.TARGETS.BUILDABLE_IOU = 0.5


def _add_model_config(cfg: CN) -> None:
    cfg.MODEL.SAMCP.HIDDEN_DIM = 256  # D
    cfg.MODEL.SAMCP.NHEADS = 8  # eta
    cfg.MODEL.SAMCP.FFN_DIM = 2048
    cfg.MODEL.SAMCP.ROI_SIZE = 7
    cfg.MODEL.SAMCP.ROI_FC_DIM = 1024
    cfg.MODEL.SAMCP.ENC_LAYERS = 6  # self-attention layers of the patch encoder
    cfg.MODEL.SAMCP.DEC_LAYERS = 6  # omega, layers of the unified affinity decoder
    # FPN levels that RoIAlign pools from.
    cfg.MODEL.SAMCP.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Recompute activations of encoder and decoder layers in the backward pass: less memory, more time.
    cfg.MODEL.SAMCP.ACTIVATION_CHECKPOINT = False

    # Classes that have a semantic (Type-I) query: "stuff" (things are predicted by instance queries) or "all".
    cfg.MODEL.SAMCP.SEMANTIC_QUERIES = "stuff"
    # Instance (Type-II) queries, one per patch. Disable them only if the vocabulary has no things.
    cfg.MODEL.SAMCP.INSTANCE_QUERIES = True

    # Switches of Tables 4 and 5.
    cfg.MODEL.SAMCP.DCA = "patch"  # dynamic cross-attention to "patch" or "image" features
    cfg.MODEL.SAMCP.DCA_MASK = True  # mask low-affinity patches in cross-attention
    cfg.MODEL.SAMCP.AFFINITY_REFINEMENT = True
    cfg.MODEL.SAMCP.MASK_ROI = True
    cfg.MODEL.SAMCP.QUERY_ENHANCEMENT = True
    cfg.MODEL.SAMCP.SELF_AFFINITY = True  # "BG": the target of an unmatched query is its own patch

    # Contrastive denoising (METHOD 3), training only.
    cfg.MODEL.SAMCP.DENOISING = CN()
    cfg.MODEL.SAMCP.DENOISING.ENABLED = True
    cfg.MODEL.SAMCP.DENOISING.MAX_QUERIES = 300
    cfg.MODEL.SAMCP.DENOISING.LABEL_NOISE = 0.5
    cfg.MODEL.SAMCP.DENOISING.BOX_NOISE = 1.0

    # CLIP model for class embeddings and, with MODEL.BACKBONE.NAME "build_clip_fpn_backbone", for images.
    cfg.MODEL.CLIP = CN()
    cfg.MODEL.CLIP.NAME = "convnext_large_d_320"  # open_clip model name
    # open_clip pretrained tag, or a local checkpoint file, which needs no network.
    cfg.MODEL.CLIP.PRETRAINED = "laion2b_s29b_b131k_ft_soup"

    # Class embeddings: "learned", a table trained with the model; "clip", MODEL.CLIP's text encoder; or "agnostic", one
    # for all words, to find objects of any class, which MODEL.SAMCP.NAMING names.
    cfg.MODEL.SAMCP.TEXT = CN()
    cfg.MODEL.SAMCP.TEXT.ENCODER = "clip"
    cfg.MODEL.SAMCP.TEXT.LEARNED_DIM = 256  # width of the learned table
    cfg.MODEL.SAMCP.TEXT.PROMPTS = list(_VILD_PROMPTS)  # templates whose embeddings are averaged

    # Fusion of learned scores with CLIP's scores of the predicted masks (METHOD 8); requires CLIP as the backbone and
    # for the words, or MODEL.SAMCP.NAMING.ENCODER.
    cfg.MODEL.SAMCP.OPEN_VOCABULARY = CN()
    cfg.MODEL.SAMCP.OPEN_VOCABULARY.ENABLED = False
    cfg.MODEL.SAMCP.OPEN_VOCABULARY.KAPPA = 0.4  # 0: learned scores only, 1: CLIP's only (Table 6)
    cfg.MODEL.SAMCP.OPEN_VOCABULARY.KAPPA_UNSEEN = 0.4  # for classes unseen in training
    cfg.MODEL.SAMCP.OPEN_VOCABULARY.FUSION = "product"  # geometric mean, or "sum", the formula of 4.1

    # Names of regions by a frozen dual encoder of its own, independent of the backbone, as the second classifier of
    # OPEN_VOCABULARY: "imagenet" (EfficientNet-Lite0, no download), "clip" (MODEL.CLIP), or "" for none.
    cfg.MODEL.SAMCP.NAMING = CN()
    cfg.MODEL.SAMCP.NAMING.ENCODER = ""
    cfg.MODEL.SAMCP.NAMING.MIN_SIZE = 480  # shorter side in pixels of the encoder's input

    # Backbone of timm with Detectron2's FPN: MODEL.BACKBONE.NAME "build_timm_fpn_backbone".
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # "" for random weights, a checkpoint file, or "package:NAME" for the .pth file inside an installed package.
    cfg.MODEL.TIMM.WEIGHTS = ""
    cfg.MODEL.TIMM.FREEZE_NORM = True  # freeze statistics and affine parameters of BatchNorm

    # Swin with Detectron2's FPN: MODEL.BACKBONE.NAME "build_swin_fpn_backbone"; the defaults are Swin-T.
    cfg.MODEL.SWIN = CN()
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.2  # stochastic depth of the last block, increasing linearly from 0
    cfg.MODEL.SWIN.WEIGHTS = ""  # "" for random weights, or a file of the official release
    cfg.MODEL.SWIN.ACTIVATION_CHECKPOINT = False  # recompute activations in the backward pass


def _add_loss_config(cfg: CN) -> None:
    cfg.MODEL.SAMCP.LOSS = CN()  # weights (METHOD 7); 0 disables a term (Table 3)
    cfg.MODEL.SAMCP.LOSS.CLS = 2.0
    cfg.MODEL.SAMCP.LOSS.MASK_FOCAL = 1.0
    cfg.MODEL.SAMCP.LOSS.DICE = 1.0
    # Factor of the affinity losses of unmatched queries, which are averaged over those queries ("BG", Table 4).
    cfg.MODEL.SAMCP.LOSS.SELF_AFFINITY = 0.3
    # No class loss for stuff in instance and denoising queries, so that stuff words are not used as negatives.
    cfg.MODEL.SAMCP.LOSS.THINGS_ONLY = True
    cfg.MODEL.SAMCP.MATCHER = CN()  # costs of the Hungarian matching (METHOD 6)
    cfg.MODEL.SAMCP.MATCHER.CLS = 2.0
    cfg.MODEL.SAMCP.MATCHER.MASK_FOCAL = 1.0
    cfg.MODEL.SAMCP.MATCHER.DICE = 1.0
    cfg.MODEL.SAMCP.MATCHER.L1 = 1.0
    cfg.MODEL.SAMCP.MATCHER.GIOU = 1.0


def _add_inference_config(cfg: CN) -> None:
    cfg.MODEL.SAMCP.TEST = CN()
    cfg.MODEL.SAMCP.TEST.SEMANTIC_ON = True
    cfg.MODEL.SAMCP.TEST.INSTANCE_ON = True
    cfg.MODEL.SAMCP.TEST.PANOPTIC_ON = True
    cfg.MODEL.SAMCP.TEST.SCORE_THRESHOLD = 0.3  # panoptic: minimum class score of an entity
    cfg.MODEL.SAMCP.TEST.AFFINITY_THRESHOLD = 0.3  # panoptic: minimum of an entity's maximum affinity
    cfg.MODEL.SAMCP.TEST.MEMBER_THRESHOLD = 0.5  # minimum normalised affinity of a query's patches
    cfg.MODEL.SAMCP.TEST.OVERLAP_THRESHOLD = 0.8  # panoptic: minimum fraction of its area that an entity keeps
    # Panoptic: a thing that contains more than this fraction of a smaller and better one of its class is dropped.
    cfg.MODEL.SAMCP.TEST.NESTED_THRESHOLD = 1.0
    # Rule for pixels where patches overlap: "mean" of their scores, "paper" (4.1), or "nested", with things in front
    # of stuff.
    cfg.MODEL.SAMCP.TEST.MERGE = "mean"
    # Except by "paper": minimum score of a pixel's class, by default twice the initial class probability; other pixels
    # are unlabeled.
    cfg.MODEL.SAMCP.TEST.SEMANTIC_THRESHOLD = 0.02
    # Return "sem_seg" as C x H x W scores, as in Detectron2, instead of an H x W label map (-1: unlabeled).
    cfg.MODEL.SAMCP.TEST.SEM_SEG_SCORES = False
    # Baseline without Prompt II: "patches", each thing patch is an instance; "components", touching thing patches with
    # the same label are an instance; "" for the model.
    cfg.MODEL.SAMCP.TEST.BASELINE = ""
    # Evaluate Prompt I and Prompt II against the ground-truth affinity.
    cfg.MODEL.SAMCP.TEST.PROMPTS_ON = False
    cfg.MODEL.SAMCP.TEST.PAIR_THRESHOLD = 0.4  # minimum score of Prompt II for two patches of one instance
    # Evaluate the ground-truth affinity instead of the model: the upper bound for the given patches.
    cfg.TEST.ORACLE = False
    # Write OUTPUT_DIR/report.html at the end of a training, which also evaluates the oracle.
    cfg.TEST.REPORT = True


def _add_solver_config(cfg: CN) -> None:
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # learning rate factor of the pretrained backbone, without FPN
    cfg.SOLVER.CHECKPOINTS_KEPT = 3  # the latest ones; 0: all. Each has the state of the optimizer


def load_config(args: argparse.Namespace) -> CN:
    """Load the config of --config-file, a path or the name of a packaged config, with the command line's overrides.

    Args:
        args: of :func:`samcp.command_line.training_parser` or Detectron2's ``default_argument_parser``; config_file is
            set to the path that was found.

    Raises:
        UsageError: the file is unreadable, a key is unknown, or the combination of values cannot run.
    """
    cfg = get_cfg()
    add_samcp_config(cfg)
    try:
        args.config_file = find_config(args.config_file)
    except FileNotFoundError as error:
        raise UsageError(f"--config-file {error}") from error
    merge_file(cfg, args.config_file)
    merge_overrides(cfg, args.opts)
    cfg.MODEL.WEIGHTS = model_zoo.find(cfg.MODEL.WEIGHTS)
    cfg.DATASETS.STRICT |= getattr(args, "strict", False)  # not an option of Detectron2's parser
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but PyTorch sees no GPU here; add: MODEL.DEVICE cpu")
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu" and not args.eval_only:
        raise UsageError("SOLVER.AMP.ENABLED needs a GPU; add: SOLVER.AMP.ENABLED False")
    if cfg.TEST.ORACLE and not args.eval_only:
        raise UsageError("TEST.ORACLE evaluates the ground truth and cannot be trained; add: --eval-only")
    cfg.freeze()
    return cfg


def oracle_config(cfg: CN) -> CN:
    """Return a config that evaluates the ground-truth affinity instead of the network."""
    oracle = cfg.clone()
    oracle.defrost()
    oracle.TEST.ORACLE = True
    oracle.freeze()
    return oracle


def parse_config(text: str) -> CN:
    """Parse the yaml config that a checkpoint carries.

    Raises:
        CheckpointError: the config has a key that is unknown to this version.
    """
    cfg = get_cfg()
    add_samcp_config(cfg)
    try:
        cfg.merge_from_other_cfg(CN.load_cfg(text))
    except (KeyError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"the checkpoint's config has keys unknown to this version of the project ({error}); use the version that "
            "wrote the checkpoint"
        ) from error
    return cfg


def without_pretraining(cfg: CN) -> CN:
    """Return a copy of a config with a randomly initialised backbone, for models that load a checkpoint."""
    built = cfg.clone()
    built.defrost()
    built.MODEL.TIMM.WEIGHTS = built.MODEL.SWIN.WEIGHTS = ""
    return built


def of_one_dataset(cfg: CN, index: int) -> CN:
    """Return a copy of a config with only one of its test datasets and the patch cache of that dataset."""
    one = cfg.clone()
    one.defrost()
    for key in ("TEST", "PATCHES_TEST"):
        one.DATASETS[key] = cfg.DATASETS[key][index : index + 1]
    one.freeze()
    return one
