"""What happens to unlabelled images: strong views, blending, CutMix."""
