"""nnU-Net itself (`nnunetv2`) as a baseline: our subjects, its trainer, our metrics."""
