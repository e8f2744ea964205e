"""Find out when post-fitting CAPE keeps the accuracy of its black box, and what mends it where it does not."""
