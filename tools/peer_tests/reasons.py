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


LAYOUT = "Features are always laid out as maps (B, K, H, W), without class or register tokens."

SCRIPT = (
    "TorchScript compiles the graph of the prediction. Wrapped in another module that is compiled, our Python code "
    "cannot be. `torch.jit.script(model)` itself works, and models made with `features_only=True` can be compiled."
)

REASONS = (
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
        "test_convit_dtype_change_after_forward",
        "assert torch.float32 == torch.bfloat16*",
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
        "test_naflexvit_sapiens2_conversion*",
        "RuntimeError: *",
        "The test loads weights under the names of timm's own class, into a class that names them below `backbone`.",
    ),
    Reason(
        "timm",
        "test_nfnet_stem_feature_consistency*",
        "AssertionError: Return layers*",
        "The test applies timm's FeatureListNet itself, which looks for layers at the top of the model. Here they are "
        "below `backbone`; `features_only=True` works.",
    ),
    Reason("timm", "test_model_default_cfgs?1-swin*", "AssertionError: unpooled feature shape torch.Size*", LAYOUT),
    Reason("timm", "test_model_default_cfgs_non_std?1-sequencer2d*", "assert 16 == 384*", LAYOUT),
    Reason("timm", "test_prune_class_token_avg_pool*", "*assert * == 196*", LAYOUT),
    Reason("timm", "test_naflexvit_key_only_attn_mask_is_opt_in*", "*assert False*", LAYOUT),
    Reason("timm", "test_eva_reset_classifier_removes_attention_pool*", "AssertionError: *", LAYOUT),
    Reason("timm", "test_radio_checkpoint_filter*", "*assert 0 == 8*", LAYOUT),
    Reason(
        "timm",
        "test_forward_after_prune_intermediate_layers?coat_lite_tiny?",
        "AssertionError: Tensor-likes are not equal!*",
        "The test compares final features with intermediate ones where their shapes are equal. timm's are tokens and "
        "are not compared; ours are maps, after the last norm.",
    ),
    Reason("timm", "test_feature_getter_stage_ends_torchscript*", "RuntimeError: Module 'GraphModule' has no*", SCRIPT),
    Reason("timm", "test_vit_classifier_pruned_features*", "RuntimeError: Module 'GraphModule' has no*", SCRIPT),
    Reason("timm", "test_mobile_model_fusion_features*", "torch.jit.frontend.NotSupportedError: *", SCRIPT),
    Reason("timm", "test_model_forward_fx_torchscript*", "RuntimeError: *", SCRIPT),
    Reason(
        "timm",
        "test_swin_family_script_after_resize*",
        "AttributeError: 'RecursiveScriptModule' object has no attribute 'patch_embed'*",
        "All outputs are equal. The last line of the test reads a part of timm's own class off the compiled model.",
    ),
    Reason(
        "timm",
        "test_swin_family_compile_resize_guards?swinv2_cr_tiny_224?",
        "torch._dynamo.exc.FailOnRecompileLimitHit: *",
        "torch counts recompilations of a class. The three architectures of the test are three classes in timm and one "
        "here, so that the third exceeds the limit; by itself it passes.",
    ),
    Reason(
        "timm",
        "test_swin_family_resize_metadata*",
        "*assert [[]2, 4, 8, 16[]] == [[]4, 8, 16, 32[]]*",
        "`feature_info` is a copy, whose module names begin with `backbone`. It is right when asked for, but does "
        "not follow a later change of the patch size.",
    ),
    Reason(
        "transformers",
        "test_model_weights_reload_no_missing_tied_weights",
        "ValueError: this checkpoint is not whole*",
        "The test loads a checkpoint without most of its weights. Ours are refused, because a classifier with random "
        "weights looks like a trained one.",
    ),
    Reason(
        "transformers",
        "test_problem_types",
        "ValueError: num_labels=1 can neither predict nor learn*",
        "The test trains a classifier of one class with a softmax, and a regression. Neither has class evidence.",
    ),
    Reason(
        "transformers",
        "test_problem_types",
        "ValueError: CAPE's class probabilities sum to one*",
        "The test trains a classifier of several labels per image, which CAPE's probabilities cannot express.",
    ),
)
