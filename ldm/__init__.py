"""Latent diffusion: the model, the samplers, training, and what turns requests into pictures."""
