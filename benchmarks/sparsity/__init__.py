"""What makes maps sparse at no loss: candidates, a screening on cached features, and the fine-tuning of the best two."""
