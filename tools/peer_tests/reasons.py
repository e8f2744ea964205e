"""Why our models fail tests that the control passes.

A reason is a property of models that show evidence, or of what a suite can see of them. Anything else is a defect to
mend. A reason that explains no failure makes `tools/peer_tests` fail, so that the table does not outlive its causes.
"""

from fnmatch import fnmatchcase
from typing import NamedTuple


class Reason(NamedTuple):
    """A reason for failures.

    Args:
        suite: Package whose tests fail.
        tests: Pattern of their names, such as `test_model_forward*`.
        message: Pattern of the first line of the error.
        text: Reason, as the page gives it.
    """

    suite: str
    tests: str
    message: str
    text: str

    def explains(self, suite: str, test: str, message: str) -> bool:
        return suite == self.suite and fnmatchcase(test, self.tests) and fnmatchcase(message, self.message)


REASONS = (
    Reason(
        "timm",
        "*",
        "*'Classifier' object has no attribute '*",
        "The test reads parts of timm's own class, such as `stages` or `patch_embed`. Here they belong to `backbone`.",
    ),
    Reason(
        "timm",
        "*",
        "*UnsupportedPool: global_pool=*",
        "Evidence maps are averaged into logits, so no other pool is possible. The error is an AssertionError, as in "
        "timm.",
    ),
    Reason(
        "timm",
        "*",
        "*NoEvidenceMap: *",
        "With the arguments of the test, the architecture's head cannot be applied at every location.",
    ),
    Reason(
        "timm",
        "test_model_default_cfgs*",
        "AssertionError: output dtype torch.float32 != torch.bfloat16*",
        "CAPE's logits are logarithms of probabilities, which are computed in float32 at least.",
    ),
    Reason(
        "timm",
        "test_naflexvit_*",
        "TypeError: *",
        "NaFlex models also take lists of patches from images of several sizes. Such lists have no grid for a map, so "
        "whole images are needed.",
    ),
    Reason(
        "timm",
        "test_nfnet_stem_feature_consistency*",
        "AssertionError: Return layers*",
        "The test applies timm's FeatureListNet itself, which looks for layers at the top of the model. Here they are "
        "below `backbone`; `features_only=True` works.",
    ),
    Reason(
        "timm",
        "test_naflexvit_sapiens2_conversion*",
        "RuntimeError: *",
        "The test loads weights under the names of timm's own class, into a class that names them below `backbone`.",
    ),
    Reason(
        "timm",
        "test_feature_getter_stage_ends_torchscript*",
        "RuntimeError: *",
        "TorchScript compiles the graph of the prediction, which has no `forward_intermediates`. Models made with "
        "`features_only=True` can be scripted.",
    ),
)
