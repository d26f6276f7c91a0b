"""The hydra configs of the command line: `search`, `discover`, `bench`, and presets in experiment/."""
