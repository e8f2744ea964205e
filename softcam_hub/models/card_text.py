"""What model cards say of each family, in Markdown."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CardText:
    """What a model card says of a family, in Markdown.

    Args:
        meaning: Paragraph on the meaning of the value at a location. The default is the
            `statement` of the first map kind.
        cautions: Sentences on what the maps do not mean.
        pretrained: Sentences on a head that takes over timm's pretrained classifier.
        citation: BibTeX entry.
    """

    meaning: str = ""
    cautions: tuple[str, ...] = ()
    pretrained: str = "timm's classifier comes along, but the logits differ from timm's: train the model before use."
    citation: str = ""


SOFTCAM_CARD = CardText(
    meaning="The evidence at a location is `M' = W·F + b`, one number per class, and a class's logit *is* the mean "
    "of its map. A location\nwith positive evidence speaks for the class, one with negative evidence against it; "
    "the unit is the logit's.",
    cautions=(
        "The ReLU and the scaling of a drawn heat map drop the sign and the unit; only the raw map adds up to the "
        "logit.",
    ),
    pretrained="timm's classifier comes along and is applied at every location instead of after the average, "
    "which\nchanges nothing but rounding in the logits. There is nothing to train.",
    citation="""@misc{djoumessi2025softcam,
  title={Soft-{CAM}: Making black box models self-explainable for high-stakes decisions},
  author={Djoumessi, Kerol and Berens, Philipp},
  year={2025}
}""",
)

CAPE_CARD = CardText(
    meaning="The map of a class holds, at each location, the probability `softmax_c(M'/T') · softmax_ij(mean_c "
    "M'/T')` of the evidence\n`M' = W·F + b`, and the predicted probability of the class *is* the sum of its map. "
    "So one may say: these locations carry\nso many percent of the prediction. Maps of two classes may be "
    "subtracted; `mu-cape` also shows what the classes share.",
    cautions=(
        "The shares are of the model's probability, which is not calibrated by being explained: CAPE that learnt "
        "from a teacher is\n  less sure than it is right until its temperature is fitted to held-out images "
        "(`softcam_hub.fit_temperature`).",
        "Where one location is enough for the answer, CAPE puts the mass there and leaves other lesions of the "
        "same class dark.",
        "Maps of two images do not compare where the probabilities differ.",
    ),
    pretrained="timm's classifier comes along: the CAPE paper's *off-the-shelf* configuration. It needs no "
    "training, but it is a\ndifferent classifier from timm's: the paper reports a loss of accuracy, and that "
    "post-fitting wins part of it back (its\nTable 2). Neither was measured here on real data.",
    citation="""@inproceedings{chowdhury2024cape,
  title={{CAPE}: {CAM} as a Probabilistic Ensemble for Enhanced {DNN} Interpretation},
  author={Chowdhury, Townim Faisal and Liao, Kewen and Phan, Vu Minh Hieu and To, Minh-Son and Xie, Yutong and Hung,
    Kevin and Ross, David and van den Hengel, Anton and Verjans, Johan W. and Liao, Zhibin},
  booktitle={CVPR},
  year={2024}
}""",
)
