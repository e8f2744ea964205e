"""Values of images that are drawn at random."""


def skewed(generator, *shape):
    """Values in [0, 1] with a skewness of about 1.3, as shares of a map in a small lesion have."""
    return generator.beta(0.7, 3, size=shape)
