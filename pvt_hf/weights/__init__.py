"""Published variants, official checkpoints in both directions, and opening checkpoints and backbones."""
