"""What tfjoint is measured against, in PyTorch."""
