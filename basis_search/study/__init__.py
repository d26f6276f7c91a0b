"""The search of one layer and of a whole model: optuna studies, proposals, surrogate, early stopping, transfer."""
