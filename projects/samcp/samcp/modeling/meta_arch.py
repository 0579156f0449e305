"""SAM-CP meta-architecture: label patches (Prompt I) and merge them (Prompt II) in one pass (paper, Figure 2)."""

from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from proposal_cache import Patches
from samcp.modeling.affinity_decoder import AffinityDecoder, DecoderOutput
from samcp.modeling.backbone.clip import DENSE
from samcp.modeling.build import build_parts
from samcp.modeling.class_embedding import ClassEmbedding
from samcp.modeling.classifier import Classifier
from samcp.modeling.criterion import Criterion
from samcp.modeling.denoising import DenoisingQueries, make_denoising_queries
from samcp.modeling.encoded_images import EncodedImages, pad_and_stack
from samcp.modeling.inference import Inference, Predictions
from samcp.modeling.naming import NAMES, Namer
from samcp.modeling.open_vocabulary import ClipScores, ScoreFusion, mask_weights, name_predictions
from samcp.modeling.oracle import oracle_predictions
from samcp.modeling.patch_batch import PatchBatch
from samcp.modeling.patch_encoder import PatchEncoder, RoIEmbeddingCache
from samcp.modeling.queries import QueryBuilder, QuerySet, classes_with_query
from samcp.modeling.roi_align import channels_last_on_cpu
from samcp.modeling.targets import Entities, gather_entities, gather_in_crowd
from samcp.vocabulary import Vocabulary


@META_ARCH_REGISTRY.register()
class SAMCP(nn.Module):
    """SAM-CP meta-architecture.

    Args:
        backbone: computes feature maps by name.
        in_features: names of the feature levels that RoIAlign pools from, fine to coarse.
        class_embedding: embeds the words of the vocabulary's classes.
        patch_encoder, query_builder, decoder, classifier: parts of the network, as in Figure 2.
        criterion: training losses.
        inference: converts predictions to segmentations.
        vocabulary: the classes; :meth:`set_vocabulary` changes them.
        semantic_queries: "stuff" or "all", the classes that have a semantic query.
        denoising: arguments of :func:`make_denoising_queries`, None to train without denoising queries.
        buildable_iou: minimum box IoU of an instance and its patches; other instances are excluded from the loss.
        fusion: combines the scores with CLIP's scores of the predicted masks, None to use the learned scores only.
            Requires CLIP as backbone and for the class embeddings, or a namer.
        namer: encoder of its own for the scores to combine with, instead of a CLIP backbone.
        roi_size: side length of the mapper's roi_masks.
        oracle: predict the ground-truth affinity instead of running the network; inputs need their targets.
        pixel_mean, pixel_std: of the input images, one value per channel.
    """

    thing_classes: Tensor
    semantic_classes: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        class_embedding: ClassEmbedding,
        patch_encoder: PatchEncoder,
        query_builder: QueryBuilder,
        decoder: AffinityDecoder,
        classifier: Classifier,
        criterion: Criterion,
        inference: Inference,
        vocabulary: Vocabulary,
        semantic_queries: str,
        denoising: dict | None,
        buildable_iou: float,
        fusion: ScoreFusion | None,
        namer: Namer | None,
        roi_size: int,
        oracle: bool,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.in_features = list(in_features)
        self.class_embedding = class_embedding
        self.patch_encoder = patch_encoder
        self.query_builder = query_builder
        self.decoder = decoder
        self.classifier = classifier
        self.criterion = criterion
        self.inference = inference
        self.semantic_queries = semantic_queries
        self.denoising = denoising
        self.buildable_iou = buildable_iou
        self.fusion = fusion
        self.namer = namer
        self.trained_vocabulary = vocabulary
        self.roi_size = roi_size
        self.oracle = oracle
        self.register_buffer("thing_classes", None, persistent=False)
        self.register_buffer("semantic_classes", None, persistent=False)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self._set_names(vocabulary)
        self._index_classes(vocabulary)

    @classmethod
    def from_config(cls, cfg: CfgNode, vocabulary: Vocabulary | None = None) -> dict:
        """Return the constructor's arguments; the default vocabulary is that of the config's datasets."""
        return build_parts(cfg, vocabulary or Vocabulary.of_config(cfg))

    @property
    def device(self) -> torch.device:
        """Device of the model; inputs are moved to it."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Compute the losses (training) or the segmentations (evaluation) of a batch.

        Args:
            batched_inputs: one dict per image, from :class:`samcp.data.SAMCPDatasetMapper`: ``image`` (3, H, W),
                ``patches`` with patch_boxes and roi_masks, and

                * in training, and for the oracle: ``instances`` and ``sem_segments`` with gt_classes, gt_boxes,
                  gt_affinity, gt_ignore, and ``patches.in_crowd``;
                * in evaluation: ``patch_rles``, the same patches as RLEs at the size of the original image.

        Returns:
            In training a dict of losses; in evaluation one dict per image, at the size of the original image:

            * ``sem_seg``: (H, W) int64 label map, -1 for pixels without a class; or (C, H, W) scores, if so configured;
            * ``instances``: Instances with pred_boxes, scores, pred_classes and pred_masks (``RLEMasks``);
            * ``panoptic_seg``: an (H, W) int32 map of segment ids and a list of segments.
        """
        if self.oracle and not self.training:
            predictions = [
                oracle_predictions(x, self.semantic_classes, self.inference.num_classes) for x in batched_inputs
            ]
            return self._segment(predictions, batched_inputs)

        images = self.encode(batched_inputs)
        if not self.training:
            return self._segment(self.predict(images, [x["patch_rles"] for x in batched_inputs]), batched_inputs)
        words = self.class_embedding()
        patches = images.patches
        regions = gather_entities([x["sem_segments"] for x in batched_inputs], patches, min_box_iou=None)
        instances = gather_entities([x["instances"] for x in batched_inputs], patches, min_box_iou=self.buildable_iou)
        denoising = self._denoise(instances)
        queries, outputs = self._decode(images, words, denoising)
        return self.criterion(
            outputs=outputs,
            class_logits=[self._class_logits(output, words) for output in outputs],
            queries=queries,
            semantic_classes=self.semantic_classes,
            thing_classes=self.thing_classes,
            denoising=denoising,
            patches=patches,
            in_crowd=gather_in_crowd([x["patches"] for x in batched_inputs], patches),
            regions=regions,
            instances=instances,
        )

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Change the classes to predict; the weights do not change (METHOD 5).

        Raises:
            ValueError: the class embeddings are learned and do not include all of the classes.
            CheckpointError, UsageError: the encoder of words cannot be loaded. As after a ValueError, nothing has
                changed then, unless the model has both a namer and CLIP's text encoder, and the latter failed.
        """
        self.class_embedding.check_words(vocabulary.words)
        self._set_names(vocabulary)
        self.class_embedding.set_words(vocabulary.words)
        self._index_classes(vocabulary)

    def _set_names(self, vocabulary: Vocabulary) -> None:
        if self.namer is not None and not all(vocabulary.known_to(self.trained_vocabulary)):
            self.namer.set_words(vocabulary.words)

    def _index_classes(self, vocabulary: Vocabulary) -> None:
        things = torch.tensor(vocabulary.is_thing, dtype=torch.bool, device=self.device)
        self.vocabulary = vocabulary
        self.thing_classes = things.nonzero().squeeze(1)
        self.semantic_classes = classes_with_query(things, self.semantic_queries)
        self.inference.set_classes(self.thing_classes.tolist(), len(things))

    def encode(self, batched_inputs: list[dict]) -> EncodedImages:
        """Run the backbone and the patch encoder, which do not depend on the classes, on ``image`` and ``patches``."""
        patches = PatchBatch.from_instances([x["patches"] for x in batched_inputs], self.roi_size, self.device)
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        if self.training or len({image.shape for image in images}) == 1:
            maps = self._maps(images)
        else:  # one by one: GroupNorm would include the padding, and results would depend on the batch
            maps = pad_and_stack([self._maps([image]) for image in images])
        return self.encode_patches({name: channels_last_on_cpu(level) for name, level in maps.items()}, patches)

    def encode_patches(self, features: Mapping[str, Tensor], patches: PatchBatch) -> EncodedImages:
        """Encode patches of images from feature maps computed before."""
        return EncodedImages(features, patches, *self.patch_encoder([features[n] for n in self.in_features], patches))

    def predict(self, images: EncodedImages, patches: Sequence[Patches]) -> list[Predictions]:
        """Compute query predictions for the current vocabulary, with CLIP's scores if the model has a ``fusion``.

        ``patches`` has those of each image, at the size of the original image.
        """
        predictions = self.predict_learned(images)
        if self.fusion is None or (self.namer is not None and self.seen_classes.all()):
            return predictions  # a model of one class, "object", needs no names for it
        return [self.fusion(p, c, self.seen_classes) for p, c in self.predict_names(images, predictions, patches)]

    def predict_learned(self, images: EncodedImages) -> list[Predictions]:
        """Compute query predictions without CLIP's scores."""
        words = self.class_embedding()
        queries, outputs = self._decode(images, words)
        return self._predict(outputs[-1], queries, images.patches, words)

    def predict_names(
        self, images: EncodedImages, predictions: Sequence[Predictions], patches: Sequence[Patches]
    ) -> list[tuple[Predictions, ClipScores]]:
        """Compute the scores by CLIP, or by the namer, of the masks that the network predicts (mask pooling).

        Returns the predictions, to which a namer adds its semantic queries, and their scores, for each image.
        """
        if self.namer is not None:
            return self._scores_of_namer(self.namer, images, predictions, patches)
        return list(zip(predictions, self._scores_of_clip(images, predictions, patches), strict=True))

    def _scores_of_clip(
        self, images: EncodedImages, predictions: Sequence[Predictions], patches: Sequence[Patches]
    ) -> list[ClipScores]:
        clip = self.backbone.bottom_up
        stride, words = clip.output_shape()[DENSE].stride, self.class_embedding()
        scores = []
        for i, (prediction, image_patches) in enumerate(zip(predictions, patches, strict=True)):
            members = self.inference.members(torch.cat([prediction.semantic_affinity, prediction.instance_affinity]))
            height, width = images.patches.image_sizes[i].tolist()
            weights = mask_weights(members, image_patches, (height / stride, width / stride)).to(self.device)
            dense = images.features[DENSE][i, :, : weights.shape[1], : weights.shape[2]]
            logits = self.class_embedding.max_over_words(clip.logit_scale * clip.pool(dense, weights) @ words.T)
            classes = prediction.semantic_classes
            semantic, instance = logits.softmax(-1).split([len(classes), len(prediction.instance_affinity)])
            scores.append(ClipScores(semantic.gather(1, classes[:, None])[:, 0], instance))
        return scores

    def _scores_of_namer(
        self, namer: Namer, images: EncodedImages, predictions: Sequence[Predictions], patches: Sequence[Patches]
    ) -> list[tuple[Predictions, ClipScores]]:
        named = []
        for i, (prediction, image_patches) in enumerate(zip(predictions, patches, strict=True)):
            height, width = namer.grid(*images.patches.image_sizes[i].tolist())
            dense = images.features[NAMES][i, :, :height, :width]
            members = self.inference.members(prediction.instance_affinity)
            named.append(name_predictions(namer, dense, prediction, members, image_patches))
        return named

    @property
    def seen_classes(self) -> Tensor:
        """(C,) bool: classes of the current vocabulary with at least one word that the model was trained on."""
        return torch.tensor(self.vocabulary.known_to(self.trained_vocabulary), device=self.device)

    def _decode(
        self, images: EncodedImages, words: Tensor, denoising: DenoisingQueries | None = None
    ) -> tuple[QuerySet, list[DecoderOutput]]:
        queries = self.query_builder(
            embeddings=words[self.class_embedding.names],
            semantic_classes=self.semantic_classes,
            features=images.content,
            patches=images.patches,
            denoising=denoising,
        )
        levels = [images.features[name] for name in self.in_features]
        outputs = self.decoder(
            queries=queries,
            features=images.content,
            position=images.position,
            patches=images.patches,
            levels=levels,
            embed_boxes=RoIEmbeddingCache(self.patch_encoder.roi_embedding, levels),
        )
        return queries, outputs

    def _class_logits(self, output: DecoderOutput, words: Tensor) -> Tensor:
        return self.class_embedding.max_over_words(self.classifier(output.queries, words))

    def _maps(self, images: list[Tensor]) -> dict[str, Tensor]:
        """Return the backbone's feature maps by name."""
        padded = ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )
        maps: dict[str, Tensor] = self.backbone(channels_last_on_cpu(padded.tensor))
        if self.namer is not None and not self.training:
            maps[NAMES] = torch.cat([self.namer.dense(image * self.pixel_std + self.pixel_mean) for image in images])
        return maps

    def _denoise(self, instances: Entities) -> DenoisingQueries | None:
        if self.denoising is None:
            return None
        most = max(num_instances for num_instances, _ in instances.sizes)
        return make_denoising_queries(
            classes=instances.classes[:, :most],
            boxes=instances.boxes[:, :most],
            valid=instances.valid[:, :most],
            label_pool=self.thing_classes,
            **self.denoising,
        )

    def _predict(
        self, output: DecoderOutput, queries: QuerySet, patches: PatchBatch, words: Tensor
    ) -> list[Predictions]:
        scores, affinity = self._class_logits(output, words).sigmoid(), output.affinity_logits.sigmoid()
        first = queries.num_semantic
        predictions = []
        for i, valid in enumerate(patches.valid):
            instance = slice(first, first + int(valid.sum()) if queries.num_instance else first)
            predictions.append(
                Predictions(
                    semantic_classes=self.semantic_classes,
                    semantic_scores=scores[i, torch.arange(first, device=self.device), self.semantic_classes],
                    semantic_affinity=affinity[i, :first, valid],
                    instance_scores=scores[i, instance],
                    instance_affinity=affinity[i, instance][:, valid],
                )
            )
        return predictions

    def _segment(self, predictions: list[Predictions], batched_inputs: list[dict]) -> list[dict]:
        return [self.inference(p, x["patch_rles"]) for p, x in zip(predictions, batched_inputs, strict=True)]
