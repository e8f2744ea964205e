"""The architectures on which timm's model tests run."""

ARCHITECTURES = """
cait_xxs24_224 convit_tiny convmixer_1024_20_ks9_p14 convnextv2_atto cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny
deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
efficientvit_m0 ese_vovnet19b_slim_dw eva02_tiny_patch14_224 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gmlp_ti16_224
halonet_h1 hiera_tiny_224 hrnet_w18_small iformer_t inception_v3 legacy_seresnet18 legacy_xception levit_128s
mixnet_s mobilenetv2_050 mobileone_s0 mobilevit_xxs mvitv2_tiny nest_tiny poolformerv2_s12 pvt_v2_b0 rdnet_tiny
regnetx_002 regnety_002 repvgg_a0 repvit_m0_9 res2next50 resnest14d resnet18 resnetv2_18 rexnet_100 sam2_hiera_tiny
sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
swinv2_tiny_window8_256 test_coatnet test_convnext test_efficientnet test_nfnet test_resnet test_vit test_vit2
test_vit_relpos tiny_vit_5m_224 twins_svt_small visformer_tiny vitamin_small_224 volo_d1_224
xception41p xcit_nano_12_p16_224
""".split()  # noqa: SIM905, one long list reads better as text
"""A small member, below 30 million parameters, of every family of backbones that has one."""
