"""Augmentation of unlabeled images: strong views, blending, CutMix."""
