"""What happens to unlabeled images: strong views, blending, CutMix."""
