"""Train a self-explaining classifier, or the vanilla classifier that it is compared with.

    python train_accelerate.py --recipe lesions-cape                       # one process
    accelerate launch train_accelerate.py --recipe lesions-cape            # as set by `accelerate config`
    torchrun --nproc-per-node 4 train_accelerate.py --model cape_resnet50 --data you/dataset --epochs 30

This script is `softcam-hub train`, which needs no copy of the repository; `accelerate launch -m softcam_hub train` and
`torchrun --nproc-per-node 4 -m softcam_hub train` start it on many processes.

Settings are given as flags, or as a recipe with flags that override it; `--help` lists them. The output
folder holds a model that timm, transformers and pipelines load, its metrics, its training curve and its log.
"""

import sys

from softcam_hub.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
