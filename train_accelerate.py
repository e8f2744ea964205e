"""Train a self-explaining classifier, or the black box that it is compared with.

    python train_accelerate.py --recipe lesions-cape                       # one process
    accelerate launch train_accelerate.py --recipe lesions-cape            # as `accelerate config` says
    torchrun --nproc-per-node 4 train_accelerate.py --model cape_resnet50 --data you/dataset --epochs 30

Settings are flags, or the lines of a recipe with flags over them; `--help` lists them. The run leaves a model folder
that timm, transformers and pipelines load, its metrics, its training curve and its log.
"""

import sys

from softcam_hub.training import NotFinite, parse, run


def main() -> int:
    """Train; a mistake in settings or data ends with a sentence, not with a traceback."""
    try:
        run(parse())
    except (ValueError, OSError, ImportError, NotFinite) as error:
        print(f"train_accelerate.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train_accelerate.py: interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
