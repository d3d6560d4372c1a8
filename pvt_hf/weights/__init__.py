"""Variants of the paper, official checkpoints both ways, and the first weights of a backbone."""
