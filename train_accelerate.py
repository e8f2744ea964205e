"""Train a self-explaining classifier, or the vanilla classifier that it is compared with.

    python train_accelerate.py --recipe lesions-cape                       # one process
    accelerate launch train_accelerate.py --recipe lesions-cape            # as set by `accelerate config`
    torchrun --nproc-per-node 4 train_accelerate.py --model cape_resnet50 --data you/dataset --epochs 30

Settings are given as flags, or as a recipe with flags that override it; `--help` lists them. The output
folder holds a model that timm, transformers and pipelines load, its metrics, its training curve and its log.
"""

import sys

from softcam_hub.training import NotFinite, parse, run


def main() -> int:
    """Train, and end with a sentence instead of a traceback if settings or data are wrong."""
    try:
        run(parse())
    except (ValueError, OSError, ImportError, NotFinite) as error:
        print(f"train_accelerate.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train_accelerate.py: interrupted; --resume continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
