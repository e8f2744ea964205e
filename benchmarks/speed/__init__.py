"""What our models, explainers and training cost, measured side by side with other libraries in one run."""
