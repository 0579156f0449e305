#!/usr/bin/env python
"""Train and evaluate SAM-CP, as every Detectron2 project is trained and evaluated.

    python projects/samcp/train_net.py --config-file configs/coco/panoptic/samcp_R50_12ep.yaml --num-gpus 8
    python projects/samcp/train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.pth
    python projects/samcp/train_net.py --config-file ... --eval-only TEST.ORACLE True

The last one feeds the ground-truth affinity through the same inference and evaluators: the bound that the patches
allow. Each dataset of DATASETS.TRAIN and TEST needs a patch cache in DATASETS.PATCHES_TRAIN and PATCHES_TEST.
`samcp train` and `samcp eval` are the same commands.
"""

from samcp.command_line import training_parser


def main() -> None:
    arguments = training_parser(__doc__).parse_args()

    from samcp.commands import train

    train.main(arguments)


if __name__ == "__main__":
    main()
