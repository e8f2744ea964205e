"""Find out when post-fitting CAPE keeps the accuracy of its vanilla classifier, and what mends it where it does not."""
