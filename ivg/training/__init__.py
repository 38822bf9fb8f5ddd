"""What the training scripts and their users import: data, labelling, value losses and trainer, resume."""
