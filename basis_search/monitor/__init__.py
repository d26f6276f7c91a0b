"""A running search made visible: progress in the terminal, watching a run folder, wandb."""
