"""Networks, their averages, and how they are run on an image."""
