"""Text of model cards about each family, in Markdown."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CardText:
    """Text of a model card about a family, in Markdown.

    Args:
        meaning: Paragraph on the meaning of the value at a location. The default is the
            `statement` of the first map kind.
        cautions: Sentences on what the maps do not mean.
        pretrained: Sentences on a head that takes over timm's pretrained classifier.
        citation: BibTeX entry.
    """

    meaning: str = ""
    cautions: tuple[str, ...] = ()
    pretrained: str = (
        "The head takes over timm's classifier, but its logits differ from timm's: train the model before use."
    )
    citation: str = ""


SOFTCAM_CARD = CardText(
    meaning="""The evidence at a location is `M' = W·F + b`, one number per class,
and a class's logit *is* the mean of its map. A location with positive evidence speaks for the class,
and a location with negative evidence against it. The unit of the map is the unit of the logit.""",
    cautions=(
        """The ReLU and the scaling of a drawn heat map drop the sign and the unit: only the raw map
  averages to the logit.""",
        """A penalty on the evidence (`l1`, `l2`) makes it smaller, not sparser: with the same logit, a flat map and a
  spike of one sign cost the same.""",
    ),
    pretrained="""The head takes over timm's classifier and applies it at
every location instead of after the average. Up to rounding, the logits stay the same: there is nothing to train.""",
    citation="""@inproceedings{djoumessi2026softcam,
  title={Soft-{CAM}: Making black box models self-explainable for high-stakes decisions},
  author={Djoumessi, Kerol and Berens, Philipp},
  booktitle={Medical Imaging with Deep Learning},
  series={Proceedings of Machine Learning Research},
  volume={315},
  pages={433--467},
  year={2026}
}""",
)

CAPE_CARD = CardText(
    meaning="""The map of a class holds, at each location, the probability
`softmax_c(M'/T') · softmax_ij(mean_c M'/T')` of the evidence `M' = W·F + b`,
and the predicted probability of the class *is* the sum of its map. One can therefore say which
percentage of the prediction some locations carry, and subtract the map of one class from the map of
another. The `mu-cape` maps also show evidence that the classes share.""",
    cautions=(
        """The maps divide up the model's probability, and an explained probability is not a calibrated one.
  CAPE that learnt from a teacher is less confident than it is accurate, until its temperature is fitted
  to held-out images (`softcam_hub.fit_temperature`).""",
        """If one location is enough for the prediction, CAPE puts the probability there, and leaves other
  lesions of the same class dark.""",
        """The map of an image adds up to the probability in that image. If the probabilities of two images
  differ, compare shares of them, not values.""",
    ),
    pretrained="""The head takes over timm's classifier, which is the
CAPE paper's *off-the-shelf* configuration. It works without training, but it is a different classifier
from timm's: the paper reports a loss of accuracy, part of which post-fitting (`softcam_hub.post_fit`) wins
back (its Table 2). Neither was measured here for this architecture; the documentation has measurements
of other ones (docs/post_fitting.md).""",
    citation="""@inproceedings{chowdhury2024cape,
  title={{CAPE}: {CAM} as a Probabilistic Ensemble for Enhanced {DNN} Interpretation},
  author={Chowdhury, Townim Faisal and Liao, Kewen and Phan, Vu Minh Hieu and To, Minh-Son and Xie, Yutong and Hung,
    Kevin and Ross, David and van den Hengel, Anton and Verjans, Johan W. and Liao, Zhibin},
  booktitle={CVPR},
  year={2024}
}""",
)
