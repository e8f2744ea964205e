"""What makes maps sparse at no loss: candidates, a screening on frozen features, fine-tuning of the best two."""
