"""BrainFoundry: brain-MRI foundation models, trained on Ray, proved scan by scan."""

__version__ = "0.1.0"
