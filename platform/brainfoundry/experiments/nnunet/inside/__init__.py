"""What runs in the Python environment of nnU-Net, which has no BrainFoundry: nothing here imports it."""
