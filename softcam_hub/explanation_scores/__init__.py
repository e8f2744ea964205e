"""How good an explanation is: pure functions on tensors, one value per image."""
