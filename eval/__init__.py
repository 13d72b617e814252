"""What a model has become: measures of checkpoints, and what to train with."""
